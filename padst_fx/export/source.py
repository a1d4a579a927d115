"""The model that is exported: one that may be, in its inference form."""

from __future__ import annotations

from typing import Any

from torch import nn

from padst_fx.compiled import uncompiled
from padst_fx.freezing import FrozenModel, freeze
from padst_fx.layers.linear import SparseLinear


def check_ready(model: Any) -> None:
    """Raise `TypeError` for what is no module, and `ValueError` for a model that a training still
    holds: one of its modules in training mode, or a layer that collects growth scores."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    for name, module in uncompiled(model).named_modules():
        if module.training:
            raise ValueError(
                f"{name or type(model).__name__} is in training mode: call model.eval() first"
            )
        if isinstance(module, SparseLinear) and _collects(module):
            raise ValueError(
                f"{name} collects growth scores: finish the step with DST.step(), or end the "
                "training with DST.close(), before the model is exported"
            )


def _collects(layer: SparseLinear) -> bool:
    return layer.scoring or layer.signalling


def frozen_form(
    model: Any, example_inputs: Any, dynamic_shapes: Any, *, skip_slower: bool = False
) -> FrozenModel:
    """The model frozen, or itself where it is frozen already. Raises as `check_ready` and `freeze`
    do."""
    check_ready(model)
    if isinstance(model, FrozenModel):
        return model
    return freeze(model, example_inputs, dynamic_shapes, skip_slower=skip_slower)
