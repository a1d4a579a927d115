"""Launches of the Triton kernels for gather-GEMM and scatter-GEMM.

Nothing is tuned or read back here, and no state is kept between calls: safe under CUDA graphs.
Three products serve the six functions, because the transposed form swaps input and output.
"""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch import Tensor

from padst_fx.kernels import dense_products, triton_call
from padst_fx.kernels.activation import check_name
from padst_fx.kernels.gather_gemm import triton_dense
from padst_fx.kernels.gather_gemm.columns import entries_per_window
from padst_fx.kernels.gather_gemm.triton_weight_grad import outer_product
from padst_fx.kernels.integers import ceil_div, power_of_two
from padst_fx.kernels.tiles.calculated import SMALLEST_DOT
from padst_fx.kernels.tiles.problem import Problem
from padst_fx.kernels.tiles.table import lookup
from padst_fx.kernels.triton_call import dot_precision, needs_long
from padst_fx.kernels.triton_layout import arranged, unpermuted
from padst_fx.kernels.two_four import library as two_four

_kernels = triton_call.imported_late("padst_fx.kernels.gather_gemm.triton_kernels")


def _gather_product(
    source: Tensor,
    values: Tensor,
    index: Tensor,
    perm: Tensor,
    bias: Tensor | None,
    window: int,
    activation: str,
) -> Tensor:
    """Row blocks of outputs, each the sum over its columns of ``source``: -> [M, R*V].

    Without a bias the permutation is on the result's side.
    """
    (tokens, features), dtype = source.shape, source.dtype
    row_blocks, entries, group, tile = values.shape
    result = torch.empty((tokens, row_blocks * tile), dtype=dtype, device=source.device)
    dot = tile >= SMALLEST_DOT and dtype != torch.float64
    source, reads_perm, writes_perm, undoes_perm = arranged(
        source, perm, bias is None, adjacent=group if dot else 1
    )
    constants: dict[str, Any] = {}
    if dot:
        sizes: tuple[int, ...] = (row_blocks, group, tile, entries * group)
        tiles = lookup(source.device, Problem("gather_dot", dtype, tokens, sizes))
        kernel, constants["PRECISION"] = _kernels().gather_dot_kernel, dot_precision(dtype)
        programs = row_blocks * ceil_div(tile, tiles["BLOCK_V"])
    else:
        sizes = (row_blocks * tile, entries * group)
        tiles = lookup(source.device, Problem("gather_sum", dtype, tokens, sizes))
        kernel, constants["WIDE"] = _kernels().gather_sum_kernel, dtype == torch.float64
        programs = ceil_div(row_blocks * tile, tiles["BLOCK_F"])
    triton_call.launch(
        kernel,
        programs * ceil_div(tokens, tiles["BLOCK_M"]),
        source,
        values.contiguous(),
        index.contiguous(),
        perm.contiguous(),
        values if bias is None else bias.contiguous(),
        tokens,
        source.shape[0],
        row_blocks,
        entries,
        entries_per_window(entries, window, features),
        window,
        source.stride(0),
        source.stride(1),
        result,
        GROUP=group,
        TILE=tile,
        READ_PERM=reads_perm,
        WRITE_PERM=writes_perm,
        HAS_BIAS=bias is not None and bias.numel() > 0,
        ACTIVATION=activation,
        LONG=needs_long(source, result, values),
        **constants,
        **tiles,
    )
    return unpermuted(result, perm) if undoes_perm else result


def entry_lists(index: Tensor, group: int, window: int, features: int) -> tuple[Tensor, Tensor]:
    """Entries by the block of ``group`` features they cover: (order [R*E], starts [blocks + 1]).

    Made on the device at every call, by counting instead of sorting: one small kernel, no state
    that a CUDA graph could replay stale. A block's entries stand in the order of the row blocks.
    """
    row_blocks, entries = index.shape
    windows, blocks = ceil_div(features, window), features // group
    window_blocks = min(window, features) // group
    order = torch.empty(row_blocks * entries, dtype=torch.int32, device=index.device)
    starts = torch.empty(blocks + 1, dtype=torch.int32, device=index.device)
    alone = windows == 1 and window_blocks >= 64
    block_b = 1 if alone else min(4, power_of_two(window_blocks))
    triton_call.launch(
        _kernels().entry_lists_kernel,
        windows * ceil_div(window_blocks, block_b),
        index.contiguous(),
        row_blocks,
        entries,
        entries_per_window(entries, window, features),
        window_blocks,
        blocks,
        order,
        starts,
        BLOCK_B=block_b,
        BLOCK_N=4096 // block_b,
        num_warps=8,
    )
    return order, starts


def _scatter_product(
    source: Tensor,
    values: Tensor,
    index: Tensor,
    perm: Tensor,
    bias: Tensor | None,
    window: int,
    features: int,
    activation: str,
    cyclic: bool,
) -> Tensor:
    """Outputs [M, features], each the sum over the entries that cover it; no atomics.

    Without a bias the permutation is on the result's side. Entries of a cyclic index are found
    without a list where entries are wide enough for tl.dot.
    """
    tokens, dtype = source.shape[0], source.dtype
    row_blocks, entries, group, tile = values.shape
    blocks, terms = features // group, ceil_div(row_blocks * entries * group, features) * tile
    result = torch.empty((tokens, features), dtype=dtype, device=source.device)
    dot = group >= SMALLEST_DOT and tile >= SMALLEST_DOT and dtype != torch.float64
    cyclic = cyclic and dot
    index = index.contiguous()
    order, starts = (index, index) if cyclic else entry_lists(index, group, window, features)
    source, reads_perm, writes_perm, undoes_perm = arranged(
        source, perm, bias is None, adjacent=tile if dot else 1
    )
    constants: dict[str, Any] = {}
    if dot:
        problem = Problem("scatter_dot", dtype, tokens, (blocks, tile, group, terms))
        tiles = lookup(source.device, problem)
        kernel = _kernels().scatter_dot_kernel
        numbers: tuple[int, ...] = (row_blocks, entries, blocks)
        constants = {
            "PRECISION": dot_precision(dtype),
            "CYCLIC": cyclic,
            "ENTRIES": power_of_two(entries) if cyclic else 1,
        }
        programs = blocks * ceil_div(group, tiles["BLOCK_V"])
    else:
        tiles = lookup(source.device, Problem("scatter_sum", dtype, tokens, (features, terms)))
        kernel, constants["WIDE"] = _kernels().scatter_sum_kernel, dtype == torch.float64
        numbers = (entries, blocks)
        programs = ceil_div(features, tiles["BLOCK_F"])
    triton_call.launch(
        kernel,
        programs * ceil_div(tokens, tiles["BLOCK_M"]),
        source,
        values.contiguous(),
        order,
        starts,
        perm.contiguous(),
        values if bias is None else bias.contiguous(),
        tokens,
        source.shape[0],
        *numbers,
        source.stride(0),
        source.stride(1),
        result,
        GROUP=group,
        TILE=tile,
        READ_PERM=reads_perm,
        WRITE_PERM=writes_perm,
        HAS_BIAS=bias is not None and bias.numel() > 0,
        ACTIVATION=activation,
        LONG=needs_long(source, result, values),
        **constants,
        **tiles,
    )
    return unpermuted(result, perm) if undoes_perm else result


def _through_dense(
    part: str, source: Tensor, shape: tuple[int, ...], listed: int, width: int
) -> bool:
    """Whether ``part`` with values of ``shape`` [R, E, G, V] goes through a dense matrix.

    ``listed`` features are those that the index lists, ``width`` is the edge of the blocks that
    the part's own kernel gives to tl.dot.
    """
    row_blocks, _, _, tile = shape
    return dense_products.is_faster(
        part,
        source,
        row_blocks * tile,
        listed,
        prod(shape),
        width if width >= SMALLEST_DOT else 1,
    )


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
    call = (x, values, index, perm, bias)
    if window != 4 or not two_four.is_faster(x, values):
        return _gather_forward(*call, window, activation)
    sizes = (x.shape, values.shape, perm.numel(), bias.numel())
    if two_four.is_new(x.device, x.dtype, x.stride(), sizes, activation):
        # A CUDA graph takes the kernel, which cannot be compiled while the graph is captured.
        _gather_forward(*call, window, activation)
    return two_four.forward(*call, activation)


def _gather_forward(
    x: Tensor,
    values: Tensor,
    index: Tensor,
    perm: Tensor,
    bias: Tensor,
    window: int,
    activation: str,
) -> Tensor:
    if _through_dense("forward", x, values.shape, x.shape[1], values.shape[3]):
        return triton_dense.gather_gemm_forward(x, values, index, perm, bias, window, activation)
    return _gather_product(x, values, index, perm, bias, window, activation)


def gather_gemm_input_grad(
    grad: Tensor, values: Tensor, index: Tensor, perm: Tensor, window: int, in_features: int
) -> Tensor:
    """``grad @ S`` written through ``perm``: grad [M, R*V] -> [M, I]."""
    if _through_dense("input_grad", grad, values.shape, in_features, min(values.shape[2:])):
        return triton_dense.gather_gemm_input_grad(grad, values, index, perm, window, in_features)
    return _scatter_product(
        grad, values, index, perm, None, window, in_features, "none", cyclic=False
    )


def gather_gemm_weight_grad(
    grad: Tensor, x: Tensor, index: Tensor, perm: Tensor, window: int, group: int
) -> Tensor:
    """The entries of ``grad.T @ x[:, perm]`` under the index: [R, E, G, V]."""
    tile = grad.shape[1] // index.shape[0]
    if _through_dense("weight_grad", grad, (*index.shape, group, tile), x.shape[1], tile):
        return triton_dense.gather_gemm_weight_grad(grad, x, index, perm, window, group)
    return outer_product(x, grad, index, perm, window, group, blocked_perm=False)


def scatter_gemm_forward(
    x: Tensor,
    values: Tensor,
    index: Tensor,
    perm: Tensor,
    bias: Tensor,
    out_features: int,
    activation: str,
) -> Tensor:
    """The transposed form: x [M, R*V], values [R, E, G, V], index [R, E] -> [M, O].

    The index is cyclic: ``index[r, e] = (index[0, e] + r) mod (O / G)``, its first row ascends.
    """
    check_name(activation)
    if _through_dense("forward", x, values.shape, out_features, min(values.shape[2:])):
        return triton_dense.scatter_gemm_forward(
            x, values, index, perm, bias, out_features, activation
        )
    return _scatter_product(
        x, values, index, perm, bias, out_features, out_features, activation, cyclic=True
    )


def scatter_gemm_input_grad(grad: Tensor, values: Tensor, index: Tensor, perm: Tensor) -> Tensor:
    """The input's gradient in the transposed form: grad [M, O] -> [M, R*V]."""
    if _through_dense("input_grad", grad, values.shape, grad.shape[1], values.shape[3]):
        return triton_dense.scatter_gemm_input_grad(grad, values, index, perm)
    return _gather_product(grad, values, index, perm, None, grad.shape[1], "none")


def scatter_gemm_weight_grad(
    grad: Tensor, x: Tensor, index: Tensor, perm: Tensor, group: int
) -> Tensor:
    """The values' gradient in the transposed form: [R, E, G, V]."""
    tile = x.shape[1] // index.shape[0]
    if _through_dense("weight_grad", grad, (*index.shape, group, tile), grad.shape[1], tile):
        return triton_dense.scatter_gemm_weight_grad(grad, x, index, perm, group)
    return outer_product(grad, x, index, perm, grad.shape[1], group, blocked_perm=True)
