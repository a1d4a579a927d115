"""A model and its inputs in the dtype an engine is to compute in."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from padst_fx.compiled import uncompiled
from padst_fx.freezing import FrozenModel

PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def check_precision(model: Any, precision: str | None) -> None:
    """Raise `ValueError` for an unknown precision, or one asked for of a frozen model."""
    if precision is not None and precision not in PRECISIONS:
        raise ValueError(
            f"precision must be one of {', '.join(PRECISIONS)} or None, got {precision!r}"
        )
    if precision is not None and isinstance(model, FrozenModel):
        raise ValueError(
            "a frozen model keeps its dtypes: give the model itself, or leave precision out"
        )


def in_precision(
    model: nn.Module, example_inputs: Any, precision: str | None
) -> tuple[nn.Module, Any]:
    """Copies of both with floating tensors in that dtype; both themselves without a precision."""
    if precision is None:
        return model, example_inputs
    dtype = PRECISIONS[precision]

    def cast(leaf: Any) -> Any:
        return leaf.to(dtype) if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf

    return copy.deepcopy(uncompiled(model)).to(dtype), pytree.tree_map(cast, example_inputs)
