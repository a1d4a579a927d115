"""Activations that kernels fuse into their output, and their derivatives."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

NAMES = ("none", "relu", "gelu", "gelu_tanh", "silu")


def check_name(name: str) -> None:
    """Raise ValueError unless ``name`` is one of ``NAMES``."""
    if name not in NAMES:
        raise ValueError(f"activation must be one of {', '.join(NAMES)}; got {name!r}")


def apply(name: str, x: Tensor) -> Tensor:
    """The activation ``name`` of ``x``, elementwise; "gelu" is the erf form.

    Raises ValueError for an unknown name.
    """
    check_name(name)
    if name == "relu":
        return F.relu(x)
    if name == "gelu":
        return F.gelu(x)
    if name == "gelu_tanh":
        return F.gelu(x, approximate="tanh")
    if name == "silu":
        return F.silu(x)
    return x


def backward(name: str, grad: Tensor, pre: Tensor) -> Tensor:
    """The gradient at the activation's input ``pre``, from ``grad`` at its output.

    Raises ValueError for an unknown name.
    """
    check_name(name)
    if name == "relu":
        return torch.ops.aten.threshold_backward(grad, pre, 0)
    if name == "gelu":
        return torch.ops.aten.gelu_backward(grad, pre)
    if name == "gelu_tanh":
        return torch.ops.aten.gelu_backward(grad, pre, approximate="tanh")
    if name == "silu":
        if not torch.is_grad_enabled():
            return torch.ops.aten.silu_backward(grad, pre)
        # `silu_backward` has no derivative of its own.
        gate = pre.sigmoid()
        return grad * gate * (1 + pre * (1 - gate))
    return grad
