"""Launches of the Triton kernels for width-1 wrapped diagonals.

Nothing is tuned or read back here, and no state is kept between calls: safe under CUDA graphs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from padst_fx.kernels import dense_products, triton_call
from padst_fx.kernels.activation import check_name
from padst_fx.kernels.integers import ceil_div
from padst_fx.kernels.precision import accumulation_dtype
from padst_fx.kernels.shift import triton_dense
from padst_fx.kernels.shift.triton_slots import diagonal_slots
from padst_fx.kernels.tiles.problem import Problem
from padst_fx.kernels.tiles.table import lookup
from padst_fx.kernels.triton_call import dot_precision, has_matrix_units, needs_long
from padst_fx.kernels.triton_layout import (
    arranged,
    permuted_lanes,
    permuted_rows,
    sum_parts,
    unpermuted,
)

FEWEST_DOT_TOKENS = 64

_kernels = triton_call.imported_late("padst_fx.kernels.shift.triton_kernels")


def _product(
    source: Tensor,
    values: Tensor,
    offsets: Tensor,
    perm: Tensor,
    bias: Tensor | None,
    result_features: int,
    activation: str,
    spread: bool,
) -> Tensor:
    """The result [M, result_features]; without a bias the permutation is on its side."""
    (tokens, source_features), dtype = source.shape, source.dtype
    diagonals = offsets.shape[0]
    problem = Problem("shift_product", dtype, tokens, (result_features, diagonals))
    tiles = lookup(source.device, problem)
    result = torch.empty((tokens, result_features), dtype=dtype, device=source.device)
    source, reads_perm, writes_perm, undoes_perm = arranged(source, perm, bias is None, adjacent=1)
    triton_call.launch(
        _kernels().shift_product_kernel,
        ceil_div(result_features, tiles["BLOCK_F"]) * ceil_div(tokens, tiles["BLOCK_M"]),
        source,
        values.contiguous(),
        offsets.contiguous(),
        perm.contiguous(),
        values if bias is None else bias.contiguous(),
        tokens,
        source.shape[0],
        source_features,
        result_features,
        diagonals,
        source.stride(0),
        source.stride(1),
        result,
        SPREAD=spread,
        READ_PERM=reads_perm,
        WRITE_PERM=writes_perm,
        HAS_BIAS=bias is not None and bias.numel() > 0,
        ACTIVATION=activation,
        WIDE=dtype == torch.float64,
        LONG=needs_long(source, values, result),
        **tiles,
    )
    return unpermuted(result, perm) if undoes_perm else result


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
    check_name(activation)
    if dense_products.is_faster("forward", x, out_features, x.shape[1], values.numel(), 1):
        return triton_dense.shift_forward(x, values, offsets, perm, bias, out_features, activation)
    spread = out_features >= x.shape[1]
    return _product(x, values, offsets, perm, bias, out_features, activation, spread)


def shift_input_grad(
    grad: Tensor, values: Tensor, offsets: Tensor, perm: Tensor, in_features: int
) -> Tensor:
    """``grad @ S`` written through ``perm``: grad [M, O] -> [M, I]."""
    if dense_products.is_faster("input_grad", grad, grad.shape[1], in_features, values.numel(), 1):
        return triton_dense.shift_input_grad(grad, values, offsets, perm, in_features)
    spread = grad.shape[1] < in_features
    return _product(grad, values, offsets, perm, None, in_features, "none", spread)


def shift_weight_grad(grad: Tensor, x: Tensor, offsets: Tensor, perm: Tensor) -> Tensor:
    """The entries of ``grad.T @ x[:, perm]`` on the diagonals: [K, D].

    With matrix units and many tokens the dense gradient is formed, as a whole or tile by tile,
    and its active entries kept; otherwise every diagonal is summed by itself.
    """
    (out, inputs), diagonals = (grad.shape[1], x.shape[1]), offsets.shape[0]
    weights = diagonals * min(out, inputs)
    if dense_products.is_faster("weight_grad", grad, out, inputs, weights, 1):
        return triton_dense.shift_weight_grad(grad, x, offsets, perm)
    present = perm if perm.numel() else None
    if grad.shape[0] >= FEWEST_DOT_TOKENS and has_matrix_units(grad.dtype):
        x = permuted_rows(x, present)
        still, moving = (x, grad) if grad.shape[1] >= x.shape[1] else (grad, x)
        return _weight_grad_of_dense(still, moving, offsets)
    x, grad = permuted_lanes(x, present), permuted_lanes(grad, None)
    still, moving = (x, grad) if grad.shape[1] >= x.shape[1] else (grad, x)
    return _weight_grad_of_diagonals(still, moving, offsets)


def _weight_grad_of_diagonals(still: Tensor, moving: Tensor, offsets: Tensor) -> Tensor:
    tokens, short = still.shape
    diagonals = offsets.shape[0]
    problem = Problem("shift_weight_grad", still.dtype, tokens, (short, diagonals))
    tiles = lookup(still.device, problem)
    programs = ceil_div(short, tiles["BLOCK_F"]) * ceil_div(diagonals, tiles["BLOCK_K"])
    splits = triton_call.token_splits(programs, tokens, 64)
    dtype = accumulation_dtype(still.dtype) if splits > 1 else still.dtype
    result = torch.empty((splits, diagonals, short), dtype=dtype, device=still.device)
    triton_call.launch(
        _kernels().shift_weight_grad_kernel,
        programs * splits,
        still,
        moving,
        offsets.contiguous(),
        tokens,
        ceil_div(tokens, splits),
        short,
        moving.shape[1],
        diagonals,
        *still.stride(),
        *moving.stride(),
        result,
        WIDE=still.dtype == torch.float64,
        LONG=needs_long(still, moving, result),
        **tiles,
    )
    return sum_parts(result, still.dtype)


def _weight_grad_of_dense(still: Tensor, moving: Tensor, offsets: Tensor) -> Tensor:
    (tokens, short), long, diagonals = still.shape, moving.shape[1], offsets.shape[0]
    slots = diagonal_slots(offsets, long)
    tiles = lookup(
        still.device, Problem("shift_weight_grad_dot", still.dtype, tokens, (short, long))
    )
    programs = ceil_div(short, tiles["BLOCK_S"]) * ceil_div(long, tiles["BLOCK_L"])
    splits = triton_call.token_splits(programs, tokens, 256)
    dtype = torch.float32 if splits > 1 else still.dtype
    result = torch.empty((splits, diagonals, short), dtype=dtype, device=still.device)
    triton_call.launch(
        _kernels().shift_weight_grad_dot_kernel,
        programs * splits,
        still,
        moving,
        slots,
        tokens,
        ceil_div(tokens, splits),
        short,
        long,
        diagonals,
        *still.stride(),
        *moving.stride(),
        result,
        PRECISION=dot_precision(still.dtype),
        LONG=needs_long(still, moving),
        LONG_RESULT=needs_long(result),
        **tiles,
    )
    return sum_parts(result, still.dtype)
