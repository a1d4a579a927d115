"""What Triton kernels do to a finished accumulator: the activation."""

# mypy: allow-untyped-defs

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def activate(x, ACTIVATION: tl.constexpr):
    """The activation named ``ACTIVATION`` of ``x``, in the dtype of ``x``."""
    if ACTIVATION == "relu":
        x = tl.where(x < 0, 0.0, x).to(x.dtype)
    elif ACTIVATION == "gelu":
        half = tl.full([1], 0.5, x.dtype)
        root = tl.full([1], 0.7071067811865476, x.dtype)
        x = half * x * (1 + tl.erf(x * root))
    elif ACTIVATION == "gelu_tanh":
        cubic = tl.full([1], 0.044715, x.dtype)
        scale = tl.full([1], 1.5957691216057308, x.dtype)
        x = x * tl.sigmoid(scale * (x + cubic * x * x * x))
    elif ACTIVATION == "silu":
        x = x * tl.sigmoid(x)
    return x
