"""Growth-score ops: norms of the dense gradient over units, without storing that gradient.

Maths: `kernels/growth_score/README.md`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from padst_fx.kernels.permutation import permuted
from padst_fx.kernels.precision import accumulation_dtype
from padst_fx.ops.library import implementation, register, rows


def _operands(grad: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Both operands as `[M, F]` in the gradient's dtype (autocast leaves `x` in its own)."""
    return rows(grad), rows(x).to(grad.dtype)


def _diag(grad: Tensor, x: Tensor, perm: Tensor, width: int, run: int) -> Tensor:
    kernel = implementation("growth_score", grad)
    return kernel.diag_growth_score(*_operands(grad, x), perm, width, run)


def _block(grad: Tensor, x: Tensor, perm: Tensor, size: int) -> Tensor:
    return implementation("growth_score", grad).block_growth_score(*_operands(grad, x), perm, size)


def _nm(grad: Tensor, x: Tensor, index: Tensor, perm: Tensor, n: int, m: int) -> Tensor:
    kernel = implementation("growth_score", grad)
    return kernel.nm_growth_score(*_operands(grad, x), index, perm, n, m)


def _weight(grad: Tensor, x: Tensor, perm: Tensor) -> Tensor:
    return implementation("growth_score", grad).weight_growth_score(*_operands(grad, x), perm)


def _dense(grad: Tensor, x: Tensor, perm: Tensor) -> Tensor:
    """The gradient itself, `[O, I]`, where its norms over parts of a batch do not do."""
    wide = accumulation_dtype(grad.dtype)
    return rows(grad).to(wide).t() @ permuted(rows(x), perm).to(wide)


def _fake_diag(grad: Tensor, x: Tensor, perm: Tensor, width: int, run: int) -> Tensor:
    units = torch.sym_max(grad.shape[-1], x.shape[-1]) // (width * run)
    return grad.new_empty((units,), dtype=accumulation_dtype(grad.dtype))


def _fake_block(grad: Tensor, x: Tensor, perm: Tensor, size: int) -> Tensor:
    shape = (grad.shape[-1] // size, x.shape[-1] // size)
    return grad.new_empty(shape, dtype=accumulation_dtype(grad.dtype))


def _fake_nm(grad: Tensor, x: Tensor, index: Tensor, perm: Tensor, n: int, m: int) -> Tensor:
    windows = -(-x.shape[-1] // m)
    shape = (2, index.shape[0], windows, min(n, m - n))
    return grad.new_empty(shape, dtype=accumulation_dtype(grad.dtype))


def _fake_weight(grad: Tensor, x: Tensor, perm: Tensor) -> Tensor:
    return grad.new_empty((grad.shape[-1], x.shape[-1]), dtype=accumulation_dtype(grad.dtype))


register(
    "diag_growth_score(Tensor grad, Tensor x, Tensor perm, int width, int run) -> Tensor",
    _diag,
    _fake_diag,
)
register(
    "block_growth_score(Tensor grad, Tensor x, Tensor perm, int size) -> Tensor",
    _block,
    _fake_block,
)
register(
    "nm_growth_score(Tensor grad, Tensor x, Tensor index, Tensor perm, int n, int m) -> Tensor",
    _nm,
    _fake_nm,
)
register(
    "weight_growth_score(Tensor grad, Tensor x, Tensor perm) -> Tensor", _weight, _fake_weight
)
register("dense_gradient(Tensor grad, Tensor x, Tensor perm) -> Tensor", _dense, _fake_weight)
