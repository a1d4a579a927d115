"""Launching a Triton kernel on the device of its tensors, without synchronising."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

SATURATING_PROGRAMS = 512
LARGEST_OFFSET = 2**31 - 1


def imported_late(kernels: str) -> Callable[[], ModuleType]:
    """The module ``kernels``, imported when first asked for: it needs Triton, launches do not."""
    return functools.cache(functools.partial(importlib.import_module, kernels))


def launch(kernel: Any, programs: int, *arguments: Tensor | int, **constants: Any) -> None:
    """Run ``programs`` programs of ``kernel``; the first argument is a tensor on the device to use.

    Grids have one axis: the second is limited to 65,535 programs.
    """
    if not programs:
        return
    device = arguments[0].device  # type: ignore[union-attr]
    if device.type != "cuda" or device.index == torch.cuda.current_device():
        kernel[(programs,)](*arguments, **constants)
        return
    with torch.cuda.device(device):
        kernel[(programs,)](*arguments, **constants)


def needs_long(*tensors: Tensor) -> bool:
    """Whether an element of one of the tensors lies further than 32 bits from the first."""
    return any(_last_offset(tensor) > LARGEST_OFFSET for tensor in tensors)


def _last_offset(tensor: Tensor) -> int:
    if tensor.is_contiguous():
        return tensor.numel() - 1
    return sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.stride(), strict=True))


def dot_precision(dtype: torch.dtype) -> str:
    """How tl.dot multiplies: float32 in TF32 only where torch's own matmul does so on CUDA."""
    tf32 = dtype == torch.float32 and torch.backends.cuda.matmul.fp32_precision == "tf32"
    return "tf32" if tf32 else "ieee"


def has_matrix_units(dtype: torch.dtype) -> bool:
    """Whether tl.dot runs on matrix units in this dtype, and not on the ordinary ones."""
    return dtype in (torch.bfloat16, torch.float16) or dot_precision(dtype) == "tf32"


def token_splits(programs: int, tokens: int, shortest: int) -> int:
    """Parts to cut a sum over tokens into, so that ``programs`` of each part fill a device.

    A power of two; no part is shorter than ``shortest`` tokens. A sum in parts is added up in a
    fixed order afterwards, so results do not change from run to run.
    """
    splits = 1
    while programs * splits * 2 <= SATURATING_PROGRAMS and shortest * splits * 2 <= tokens:
        splits *= 2
    return splits
