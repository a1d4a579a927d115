"""Gather-GEMM and scatter-GEMM through the dense matrix: slow, obvious."""

from __future__ import annotations

import torch
from torch import Tensor

from padst_fx.kernels.activation import apply
from padst_fx.kernels.gather_gemm.columns import all_columns
from padst_fx.kernels.permutation import permuted, unpermuted
from padst_fx.kernels.precision import accumulation_dtype


def _coordinates(index: Tensor, group: int, tile: int, window: int, features: int) -> Tensor:
    """Rows and columns of the values in their order [R, E, G, V]: [2, R, E*G, V] int64."""
    columns = all_columns(index, group, window, features)
    rows = torch.arange(index.shape[0] * tile, device=index.device).view(-1, 1, tile)
    columns = columns.unsqueeze(-1)
    return torch.stack(torch.broadcast_tensors(rows, columns))


def dense(values: Tensor, index: Tensor, window: int, features: int) -> Tensor:
    """The dense matrix of the gather form, [R*V, features], in the dtype of ``values``."""
    row_blocks, _, group, tile = values.shape
    rows, columns = _coordinates(index, group, tile, window, features)
    matrix = values.new_zeros(row_blocks * tile, features)
    matrix[rows, columns] = values.flatten(1, 2)
    return matrix


def _forward(x: Tensor, matrix: Tensor, perm: Tensor, bias: Tensor, activation: str) -> Tensor:
    pre = permuted(x, perm).to(matrix.dtype) @ matrix.t()
    if bias.numel():
        pre = pre + bias.to(matrix.dtype)
    return apply(activation, pre).to(x.dtype)


def _entries_of(gradient: Tensor, index: Tensor, window: int, group: int) -> Tensor:
    """The entries of ``gradient`` [R*V, features] under the index: [R, E, G, V]."""
    row_blocks, entries = index.shape
    tile = gradient.shape[0] // row_blocks
    rows, columns = _coordinates(index, group, tile, window, gradient.shape[1])
    return gradient[rows, columns].view(row_blocks, entries, group, tile)


def gather_gemm_forward(
    x: Tensor,
    values: Tensor,
    index: Tensor,
    perm: Tensor,
    bias: Tensor,
    window: int,
    activation: str,
) -> Tensor:
    """``act(x[:, perm] @ S.T + bias)``: x [M, I], values [R, E, G, V], index [R, E] -> [M, R*V]."""
    wide = accumulation_dtype(x.dtype)
    return _forward(x, dense(values.to(wide), index, window, x.shape[1]), perm, bias, activation)


def gather_gemm_input_grad(
    grad: Tensor, values: Tensor, index: Tensor, perm: Tensor, window: int, in_features: int
) -> Tensor:
    """``grad @ S`` written through ``perm``: grad [M, R*V] -> [M, I]."""
    wide = accumulation_dtype(grad.dtype)
    matrix = dense(values.to(wide), index, window, in_features)
    return unpermuted(grad.to(wide) @ matrix, perm).to(grad.dtype)


def gather_gemm_weight_grad(
    grad: Tensor, x: Tensor, index: Tensor, perm: Tensor, window: int, group: int
) -> Tensor:
    """The entries of ``grad.T @ x[:, perm]`` under the index: [R, E, G, V]."""
    wide = accumulation_dtype(grad.dtype)
    gradient = grad.to(wide).t() @ permuted(x, perm).to(wide)
    return _entries_of(gradient, index, window, group).to(grad.dtype)


def scatter_gemm_forward(
    x: Tensor,
    values: Tensor,
    index: Tensor,
    perm: Tensor,
    bias: Tensor,
    out_features: int,
    activation: str,
) -> Tensor:
    """The transposed form: x [M, R*V], values [R, E, G, V], index [R, E] -> [M, O]."""
    wide = accumulation_dtype(x.dtype)
    matrix = dense(values.to(wide), index, out_features, out_features)
    return _forward(x, matrix.t(), perm, bias, activation)


def scatter_gemm_input_grad(grad: Tensor, values: Tensor, index: Tensor, perm: Tensor) -> Tensor:
    """The input's gradient in the transposed form: grad [M, O] -> [M, R*V]."""
    wide = accumulation_dtype(grad.dtype)
    matrix = dense(values.to(wide), index, grad.shape[1], grad.shape[1])
    return unpermuted(grad.to(wide) @ matrix.t(), perm).to(grad.dtype)


def scatter_gemm_weight_grad(
    grad: Tensor, x: Tensor, index: Tensor, perm: Tensor, group: int
) -> Tensor:
    """The values' gradient in the transposed form: [R, E, G, V]."""
    wide = accumulation_dtype(grad.dtype)
    gradient = permuted(x, perm).to(wide).t() @ grad.to(wide)
    return _entries_of(gradient, index, grad.shape[1], group).to(grad.dtype)
