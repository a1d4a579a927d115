"""Gather-GEMM and scatter-GEMM in plain torch: gathered chunks and batched GEMMs.

Three products serve the six functions, because the transposed form swaps the roles of input and
output. Workspaces hold ``WORKSPACE`` elements (or one row block), a chunk of tokens at a time.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from padst_fx.kernels.activation import apply, check_name
from padst_fx.kernels.gather_gemm.columns import all_columns
from padst_fx.kernels.permutation import unpermuted
from padst_fx.kernels.precision import accumulation_dtype
from padst_fx.kernels.token_chunks import feature_major, token_slices

WORKSPACE = 1 << 18


def _row_blocks(row_blocks: int, columns: int, tokens: int) -> Iterator[slice]:
    """Slices of row blocks whose gathered columns fit the workspace."""
    step = max(1, WORKSPACE // max(1, columns * tokens))
    for start in range(0, row_blocks, step):
        yield slice(start, min(start + step, row_blocks))


def _gathered(source: Tensor, index: Tensor, group: int, window: int) -> Tensor:
    """The rows of ``source`` [features, M] that row blocks read: [blocks, E*G, M]."""
    columns = all_columns(index, group, window, source.shape[0])
    return source.index_select(0, columns.flatten()).view(*columns.shape, -1)


def _gather_product(source: Tensor, values: Tensor, index: Tensor, window: int) -> Tensor:
    """S @ source: from [features, M] to [R*V, M]."""
    row_blocks, entries, group, tile = values.shape
    tokens = source.shape[1]
    result = source.new_empty(row_blocks, tile, tokens)
    for blocks in _row_blocks(row_blocks, entries * group, tokens):
        weights = values[blocks].flatten(1, 2).to(source.dtype).transpose(1, 2)
        gathered = _gathered(source, index[blocks], group, window)
        torch.bmm(weights, gathered, out=result[blocks])
    return result.flatten(0, 1)


def _scatter_product(
    source: Tensor, values: Tensor, index: Tensor, window: int, features: int
) -> Tensor:
    """S.T @ source: from [R*V, M] to [features, M], added up in the order of the row blocks."""
    row_blocks, entries, group, tile = values.shape
    tokens = source.shape[1]
    result = source.new_zeros(features, tokens)
    blocked = source.view(row_blocks, tile, tokens)
    for blocks in _row_blocks(row_blocks, entries * group, tokens):
        weights = values[blocks].flatten(1, 2).to(source.dtype)
        columns = all_columns(index[blocks], group, window, features)
        result.index_add_(0, columns.flatten(), torch.bmm(weights, blocked[blocks]).flatten(0, 1))
    return result


def _add_outer_product(
    result: Tensor, gathered_from: Tensor, blocked_from: Tensor, index: Tensor, window: int
) -> None:
    """Add the outer products under the index to ``result`` [R, E, G, V]."""
    row_blocks, entries, group, tile = result.shape
    tokens = gathered_from.shape[1]
    blocked = blocked_from.view(row_blocks, tile, tokens).transpose(1, 2)
    for blocks in _row_blocks(row_blocks, entries * group, tokens):
        gathered = _gathered(gathered_from, index[blocks], group, window)
        result[blocks].flatten(1, 2).baddbmm_(gathered, blocked[blocks])


def _finished(pre: Tensor, bias: Tensor, activation: str) -> Tensor:
    """Bias and activation on a feature-major chunk, token-major."""
    if bias.numel():
        pre += bias.to(pre.dtype)[:, None]
    return apply(activation, pre).t()


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
    check_name(activation)
    result = x.new_empty(x.shape[0], values.shape[0] * values.shape[3])
    for tokens in token_slices(x.shape[0]):
        pre = _gather_product(feature_major(x[tokens], perm), values, index, window)
        result[tokens] = _finished(pre, bias, activation)
    return result


def gather_gemm_input_grad(
    grad: Tensor, values: Tensor, index: Tensor, perm: Tensor, window: int, in_features: int
) -> Tensor:
    """``grad @ S`` written through ``perm``: grad [M, R*V] -> [M, I]."""
    result = grad.new_empty(grad.shape[0], in_features)
    for tokens in token_slices(grad.shape[0]):
        source = feature_major(grad[tokens], perm[:0])
        straight = _scatter_product(source, values, index, window, in_features)
        result[tokens] = unpermuted(straight.t(), perm)
    return result


def gather_gemm_weight_grad(
    grad: Tensor, x: Tensor, index: Tensor, perm: Tensor, window: int, group: int
) -> Tensor:
    """The entries of ``grad.T @ x[:, perm]`` under the index: [R, E, G, V]."""
    row_blocks, entries = index.shape
    shape = (row_blocks, entries, group, grad.shape[1] // row_blocks)
    result = grad.new_zeros(shape, dtype=accumulation_dtype(grad.dtype))
    for tokens in token_slices(grad.shape[0]):
        blocked = feature_major(grad[tokens], perm[:0])
        _add_outer_product(result, feature_major(x[tokens], perm), blocked, index, window)
    return result.to(grad.dtype)


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
    check_name(activation)
    result = x.new_empty(x.shape[0], out_features)
    for tokens in token_slices(x.shape[0]):
        source = feature_major(x[tokens], perm)
        pre = _scatter_product(source, values, index, out_features, out_features)
        result[tokens] = _finished(pre, bias, activation)
    return result


def scatter_gemm_input_grad(grad: Tensor, values: Tensor, index: Tensor, perm: Tensor) -> Tensor:
    """The input's gradient in the transposed form: grad [M, O] -> [M, R*V]."""
    result = grad.new_empty(grad.shape[0], values.shape[0] * values.shape[3])
    for tokens in token_slices(grad.shape[0]):
        source = feature_major(grad[tokens], perm[:0])
        straight = _gather_product(source, values, index, grad.shape[1])
        result[tokens] = unpermuted(straight.t(), perm)
    return result


def scatter_gemm_weight_grad(
    grad: Tensor, x: Tensor, index: Tensor, perm: Tensor, group: int
) -> Tensor:
    """The values' gradient in the transposed form: [R, E, G, V]."""
    row_blocks, entries = index.shape
    shape = (row_blocks, entries, group, x.shape[1] // row_blocks)
    result = grad.new_zeros(shape, dtype=accumulation_dtype(grad.dtype))
    for tokens in token_slices(grad.shape[0]):
        gathered_from = feature_major(grad[tokens], perm[:0])
        blocked = feature_major(x[tokens], perm)
        _add_outer_product(result, gathered_from, blocked, index, grad.shape[1])
    return result.to(grad.dtype)
