"""Models inside `torch.compile`'s wrapper, and names without it."""

from __future__ import annotations

import sys

from torch import nn

WRAPPED = "_orig_mod"


def uncompiled(module: nn.Module) -> nn.Module:
    """The module inside `torch.compile`'s wrapper, or the module itself where there is none."""
    frame = sys.modules.get("torch._dynamo.eval_frame")
    while frame is not None and isinstance(module, frame.OptimizedModule):
        module = module.get_submodule(WRAPPED)
    return module


def plain_name(name: str) -> str:
    """A module's or tensor's qualified name as it would be without any wrapper."""
    return ".".join(part for part in name.split(".") if part != WRAPPED)
