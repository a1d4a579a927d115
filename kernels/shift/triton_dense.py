"""Width-1 wrapped diagonals through a dense matrix: the functions of `triton_launch`."""

from __future__ import annotations

import torch
from torch import Tensor

from padst_fx.kernels import dense_products, triton_call
from padst_fx.kernels.integers import ceil_div
from padst_fx.kernels.shift.triton_slots import diagonal_slots

ROWS, COLUMNS = 8, 256
BLOCK = 256

_kernels = triton_call.imported_late("padst_fx.kernels.shift.triton_dense_kernels")


def matrix(values: Tensor, offsets: Tensor, out: int, inputs: int) -> Tensor:
    """S [out, inputs] of values [K, D] and offsets [K]."""
    dense = torch.empty((out, inputs), dtype=values.dtype, device=values.device)
    triton_call.launch(
        _kernels().write_diagonals_kernel,
        ceil_div(out, ROWS) * ceil_div(inputs, COLUMNS),
        values.contiguous(),
        diagonal_slots(offsets, max(out, inputs)),
        out,
        inputs,
        dense,
        LONG=triton_call.needs_long(dense),
        BLOCK_R=ROWS,
        BLOCK_C=COLUMNS,
        num_warps=4,
    )
    return dense


def entries(dense: Tensor, offsets: Tensor) -> Tensor:
    """The entries [K, D] of a matrix on the diagonals."""
    short, long = sorted(dense.shape)
    # Columns are the shorter side of tall and square matrices.
    by_side = dense.stride() if dense.shape[0] < dense.shape[1] else dense.stride()[::-1]
    values = torch.empty((offsets.shape[0], short), dtype=dense.dtype, device=dense.device)
    triton_call.launch(
        _kernels().read_diagonals_kernel,
        offsets.shape[0] * ceil_div(short, BLOCK),
        dense,
        offsets.contiguous(),
        short,
        long,
        *by_side,
        values,
        LONG=triton_call.needs_long(dense),
        BLOCK=BLOCK,
        num_warps=4,
    )
    return values


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
    weight = matrix(values, offsets, out_features, x.shape[1])
    return dense_products.forward(x, weight, perm, bias, activation)


def shift_input_grad(
    grad: Tensor, values: Tensor, offsets: Tensor, perm: Tensor, in_features: int
) -> Tensor:
    """``grad @ S`` written through ``perm``: grad [M, O] -> [M, I]."""
    weight = matrix(values, offsets, grad.shape[1], in_features)
    return dense_products.input_grad(grad, weight, perm)


def shift_weight_grad(grad: Tensor, x: Tensor, offsets: Tensor, perm: Tensor) -> Tensor:
    """The entries of ``grad.T @ x[:, perm]`` on the diagonals: [K, D]."""
    return entries(dense_products.weight_grad(grad, x, perm), offsets)
