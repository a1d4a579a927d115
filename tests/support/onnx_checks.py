"""Running exported files in onnxruntime and comparing them with the model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

# Of the largest entry of an output, in fp32.
TOLERANCE = 1e-4


def session(path: str | Path) -> onnxruntime.InferenceSession:
    """A session on one thread of the CPU."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def run(opened: onnxruntime.InferenceSession, inputs: Any) -> list[np.ndarray]:
    """The outputs for a tensor, a tuple of arguments or a dict of keyword arguments."""
    leaves = [leaf.numpy() for leaf in pytree.tree_leaves(inputs)]
    names = [each.name for each in opened.get_inputs()]
    return opened.run(None, dict(zip(names, leaves, strict=True)))


def outputs(model: nn.Module, inputs: Any) -> list[Tensor]:
    """What the model itself returns, as a list of tensors."""
    with torch.no_grad():
        if isinstance(inputs, dict):
            found = model(**inputs)
        else:
            found = model(*inputs) if isinstance(inputs, tuple) else model(inputs)
    return pytree.tree_leaves(found)


def error(found: Sequence[np.ndarray], expected: Sequence[Tensor]) -> float:
    """The largest error of any output, as a share of that output's largest entry."""
    shares = []
    for a, b in zip(found, expected, strict=True):
        assert a.shape == tuple(b.shape)
        reference = b.double().numpy()
        shares.append(np.abs(a.astype(np.float64) - reference).max() / np.abs(reference).max())
    return float(max(shares))


def check(opened: onnxruntime.InferenceSession, model: nn.Module, inputs: Any) -> None:
    """The file computes what the model does."""
    assert error(run(opened, inputs), outputs(model, inputs)) < TOLERANCE
