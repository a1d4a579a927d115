"""Width-1 wrapped diagonals through the dense matrix: slow, obvious."""

from __future__ import annotations

import torch
from torch import Tensor

from padst_fx.kernels.activation import apply
from padst_fx.kernels.permutation import permuted, unpermuted
from padst_fx.kernels.precision import accumulation_dtype


def coordinates(offsets: Tensor, out_features: int, in_features: int) -> tuple[Tensor, Tensor]:
    """Rows and columns, each [K, D] int64, of the entries of the diagonals ``offsets``."""
    step = torch.arange(min(out_features, in_features), device=offsets.device)
    moved = step + offsets.long()[:, None]
    still = step.expand_as(moved)
    if out_features >= in_features:
        return moved % out_features, still
    return still, moved % in_features


def dense(values: Tensor, offsets: Tensor, out_features: int, in_features: int) -> Tensor:
    """The dense matrix S, [O, I], in the dtype of ``values``."""
    rows, columns = coordinates(offsets, out_features, in_features)
    matrix = values.new_zeros(out_features, in_features)
    matrix[rows, columns] = values
    return matrix


def shift_forward(
    x: Tensor,
    values: Tensor,
    offsets: Tensor,
    perm: Tensor,
    bias: Tensor,
    out_features: int,
    activation: str,
) -> Tensor:
    """``act(x[:, perm] @ S.T + bias)``: x [M, I], values [K, D], offsets [K] -> [M, O]."""
    wide = accumulation_dtype(x.dtype)
    matrix = dense(values.to(wide), offsets, out_features, x.shape[1])
    pre = permuted(x, perm).to(wide) @ matrix.t()
    if bias.numel():
        pre = pre + bias.to(wide)
    return apply(activation, pre).to(x.dtype)


def shift_input_grad(
    grad: Tensor, values: Tensor, offsets: Tensor, perm: Tensor, in_features: int
) -> Tensor:
    """``grad @ S`` written through ``perm``: grad [M, O] -> [M, I]."""
    wide = accumulation_dtype(grad.dtype)
    matrix = dense(values.to(wide), offsets, grad.shape[1], in_features)
    return unpermuted(grad.to(wide) @ matrix, perm).to(grad.dtype)


def shift_weight_grad(grad: Tensor, x: Tensor, offsets: Tensor, perm: Tensor) -> Tensor:
    """The entries of ``grad.T @ x[:, perm]`` on the diagonals: [K, D]."""
    wide = accumulation_dtype(grad.dtype)
    gradient = grad.to(wide).t() @ permuted(x, perm).to(wide)
    rows, columns = coordinates(offsets, grad.shape[1], x.shape[1])
    return gradient[rows, columns].to(grad.dtype)
