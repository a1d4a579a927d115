"""What Triton kernels do to a finished accumulator: bias, activation, store."""

# mypy: allow-untyped-defs

from __future__ import annotations

import triton
import triton.language as tl

from padst_fx.kernels.triton_layout_kernels import as_offset


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


@triton.jit
def store_result(
    total,
    bias_ptr,
    perm_ptr,
    result_ptr,
    m,
    f,
    in_result,
    tokens,
    features,
    WRITE_PERM: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    ACTIVATION: tl.constexpr,
    LONG: tl.constexpr,
):
    """Bias, activation and store of a [tokens ``m``, features ``f``] tile."""
    if HAS_BIAS:
        total += tl.load(bias_ptr + f, mask=in_result, other=0.0).to(total.dtype)[None, :]
    total = activate(total, ACTIVATION)
    write = f
    if WRITE_PERM:
        write = tl.load(perm_ptr + f, mask=in_result, other=0)
    where = result_ptr + as_offset(m, LONG)[:, None] * features + write[None, :]
    mask = (m < tokens)[:, None] & in_result[None, :]
    tl.store(where, total.to(result_ptr.dtype.element_ty), mask=mask)
