"""Launches of the Triton kernels for gather-GEMM and scatter-GEMM.

Tiles come from the shapes alone, nothing is tuned or read back: safe under CUDA graphs. Three
products serve the six functions, because the transposed form swaps input and output.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from padst_fx.kernels.activation import check_name
from padst_fx.kernels.gather_gemm.columns import entries_per_window, first_columns
from padst_fx.kernels.integers import ceil_div, power_of_two
from padst_fx.kernels.precision import accumulation_dtype
from padst_fx.kernels.triton_call import launch, token_splits

SMALLEST_DOT = 16


@dataclass(frozen=True)
class Epilogue:
    """What happens between the sums and the result."""

    bias: Tensor
    activation: str
    writes_perm: bool

    def constants(self, perm: Tensor) -> dict[str, bool | str]:
        """The constants that product kernels take, with ``perm`` read or written through."""
        return {
            "READ_PERM": perm.numel() > 0 and not self.writes_perm,
            "WRITE_PERM": perm.numel() > 0 and self.writes_perm,
            "HAS_BIAS": self.bias.numel() > 0,
            "ACTIVATION": self.activation,
        }


def _edge(size: int, largest: int) -> int:
    return max(SMALLEST_DOT, min(power_of_two(size), largest))


def dot_tiles(tokens: int, depth: int, width: int, dtype: torch.dtype) -> dict[str, int]:
    """Tile of a product with tl.dot: (M, K, N), where a sum has ``depth`` adjacent terms."""
    if dtype == torch.float32:
        rows, deep, wide, warps = _edge(tokens, 32), _edge(depth, 16), _edge(width, 64), 4
    elif tokens <= 64:
        rows, deep, wide, warps = _edge(tokens, 64), _edge(depth, 64), _edge(width, 32), 4
    else:
        rows, deep, wide = 128, _edge(depth, 64), _edge(width, 128)
        warps = 8 if wide == 128 else 4
    return {"M": rows, "K": deep, "N": wide, "num_warps": warps, "num_stages": 3}


def gather_sum_tiles(tokens: int) -> dict[str, int]:
    """Tile of the gather product without tl.dot."""
    if tokens <= 4:
        return {"BLOCK_M": 1, "BLOCK_O": 16, "BLOCK_C": 64, "num_warps": 4}
    if tokens <= 64:
        return {"BLOCK_M": 4, "BLOCK_O": 32, "BLOCK_C": 8, "num_warps": 4}
    return {"BLOCK_M": 32, "BLOCK_O": 32, "BLOCK_C": 4, "num_warps": 4}


def scatter_sum_tiles(tokens: int) -> dict[str, int]:
    """Tile of the scatter product without tl.dot."""
    if tokens <= 4:
        return {"BLOCK_M": 1, "BLOCK_K": 128, "num_warps": 1}
    return {"BLOCK_M": min(64, power_of_two(tokens)), "BLOCK_K": 16, "num_warps": 4}


def outer_sum_tiles(tokens: int) -> dict[str, int]:
    """Tile of the weight gradient without tl.dot."""
    return {"BLOCK_M": min(16, power_of_two(tokens)), "BLOCK_N": 128, "num_warps": 4}


def outer_dot_tiles(depth: int, width: int, dtype: torch.dtype) -> dict[str, int]:
    """Tile of the weight gradient with tl.dot: [BLOCK_C, BLOCK_V] values."""
    if dtype == torch.float32:
        columns, rows, tokens = _edge(depth, 32), _edge(width, 64), 16
    else:
        columns, rows, tokens = _edge(depth, 64), _edge(width, 128), 64
    return {"BLOCK_C": columns, "BLOCK_V": rows, "BLOCK_M": tokens, "num_warps": 4}


def _has_dot(tile: int, dtype: torch.dtype) -> bool:
    return tile >= SMALLEST_DOT and dtype != torch.float64


def _depth(entries: int, group: int) -> int:
    """How many columns can be taken at once: an entry's, or all where entries are narrow."""
    return group if group >= SMALLEST_DOT else entries * group


def _gather_product(
    source: Tensor, values: Tensor, index: Tensor, perm: Tensor, window: int, epilogue: Epilogue
) -> Tensor:
    """Row blocks of outputs, each the sum over its columns of ``source``: -> [M, R*V]."""
    from padst_fx.kernels.gather_gemm import triton_kernels

    tokens, features = source.shape
    row_blocks, entries, group, tile = values.shape
    result_features = row_blocks * tile
    result = torch.empty((tokens, result_features), dtype=source.dtype, device=source.device)
    constants: dict[str, int | str] = {"GROUP": group, "TILE": tile, **epilogue.constants(perm)}
    if _has_dot(tile, source.dtype):
        kernel = triton_kernels.gather_dot_kernel
        tiles = dot_tiles(tokens, _depth(entries, group), tile, source.dtype)
        block_m, block_v = tiles.pop("M"), tiles.pop("N")
        constants |= {"BLOCK_M": block_m, "BLOCK_C": tiles.pop("K"), "BLOCK_V": block_v}
        programs = row_blocks * ceil_div(tile, block_v)
    else:
        kernel = triton_kernels.gather_sum_kernel
        tiles = gather_sum_tiles(tokens)
        block_m = tiles["BLOCK_M"]
        constants["WIDE"] = source.dtype == torch.float64
        programs = ceil_div(result_features, tiles["BLOCK_O"])
    launch(
        kernel,
        (programs, ceil_div(tokens, block_m)),
        source,
        values.contiguous(),
        index.contiguous(),
        perm.contiguous(),
        epilogue.bias.contiguous(),
        tokens,
        entries,
        entries_per_window(entries, window, features),
        window,
        result_features,
        source.stride(0),
        source.stride(1),
        result,
        **constants,
        **tiles,
    )
    return result


def transposed_index(
    index: Tensor, group: int, window: int, features: int
) -> tuple[Tensor, Tensor]:
    """Entries by the block of ``group`` features they cover: (order [R*E], starts [blocks + 1]).

    The sort is stable, so sums over a block's entries always run in the order of the row blocks.
    """
    blocks = (first_columns(index, group, window, features) // group).flatten()
    ordered, order = blocks.sort(stable=True)
    bounds = torch.arange(features // group + 1, device=index.device)
    return order, torch.searchsorted(ordered, bounds)


def _scatter_product(
    source: Tensor,
    values: Tensor,
    index: Tensor,
    perm: Tensor,
    window: int,
    features: int,
    epilogue: Epilogue,
) -> Tensor:
    """Outputs [M, features], each the sum over the entries that cover it; no atomics."""
    from padst_fx.kernels.gather_gemm import triton_kernels

    tokens = source.shape[0]
    _, entries, group, tile = values.shape
    order, starts = transposed_index(index, group, window, features)
    result = torch.empty((tokens, features), dtype=source.dtype, device=source.device)
    constants: dict[str, int | str] = {"GROUP": group, "TILE": tile, **epilogue.constants(perm)}
    if group >= SMALLEST_DOT and _has_dot(tile, source.dtype):
        kernel = triton_kernels.scatter_dot_kernel
        tiles = dot_tiles(tokens, tile, group, source.dtype)
        block_m, block_g = tiles.pop("M"), tiles.pop("N")
        constants |= {"BLOCK_M": block_m, "BLOCK_V": tiles.pop("K"), "BLOCK_G": block_g}
        programs = features // group * ceil_div(group, block_g)
    else:
        kernel = triton_kernels.scatter_sum_kernel
        tiles = scatter_sum_tiles(tokens)
        block_m = tiles["BLOCK_M"]
        constants["WIDE"] = source.dtype == torch.float64
        programs = features
    launch(
        kernel,
        (programs, ceil_div(tokens, block_m)),
        source,
        values.contiguous(),
        order,
        starts,
        perm.contiguous(),
        epilogue.bias.contiguous(),
        tokens,
        entries,
        features,
        source.stride(0),
        source.stride(1),
        result,
        **constants,
        **tiles,
    )
    return result


def _outer_product(
    gathered: Tensor,
    blocked: Tensor,
    index: Tensor,
    perm: Tensor,
    window: int,
    group: int,
    blocked_perm: bool,
) -> Tensor:
    """Products of gathered columns and row blocks, summed over tokens: [R, E, G, V]."""
    from padst_fx.kernels.gather_gemm import triton_kernels

    row_blocks, entries = index.shape
    tokens, tile = blocked.shape[0], blocked.shape[1] // row_blocks
    constants: dict[str, int] = {
        "GROUP": group,
        "TILE": tile,
        "GATHERED_PERM": perm.numel() > 0 and not blocked_perm,
        "BLOCKED_PERM": perm.numel() > 0 and blocked_perm,
    }
    if _has_dot(tile, blocked.dtype):
        kernel = triton_kernels.outer_dot_kernel
        tiles = outer_dot_tiles(_depth(entries, group), tile, blocked.dtype)
        columns = entries * group if group < SMALLEST_DOT else group
        steps = ceil_div(columns, tiles["BLOCK_C"])
        steps *= 1 if group < SMALLEST_DOT else entries
        programs = row_blocks * steps * ceil_div(tile, tiles["BLOCK_V"])
    else:
        kernel = triton_kernels.outer_sum_kernel
        tiles = outer_sum_tiles(tokens)
        constants["WIDE"] = blocked.dtype == torch.float64
        programs = ceil_div(row_blocks * entries * group * tile, tiles["BLOCK_N"])
    splits = token_splits(programs, tokens, 256)
    dtype = accumulation_dtype(blocked.dtype) if splits > 1 else blocked.dtype
    shape = (splits, row_blocks, entries, group, tile)
    result = torch.empty(shape, dtype=dtype, device=blocked.device)
    launch(
        kernel,
        (programs, splits),
        gathered,
        blocked,
        index.contiguous(),
        perm.contiguous(),
        tokens,
        ceil_div(tokens, splits),
        row_blocks,
        entries,
        entries_per_window(entries, window, gathered.shape[1]),
        window,
        gathered.stride(0),
        gathered.stride(1),
        blocked.stride(0),
        blocked.stride(1),
        result,
        **constants,
        **tiles,
    )
    return result[0] if splits == 1 else result.sum(0).to(blocked.dtype)


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
    return _gather_product(x, values, index, perm, window, Epilogue(bias, activation, False))


def gather_gemm_input_grad(
    grad: Tensor, values: Tensor, index: Tensor, perm: Tensor, window: int, in_features: int
) -> Tensor:
    """``grad @ S`` written through ``perm``: grad [M, R*V] -> [M, I]."""
    epilogue = Epilogue(values.new_empty(0), "none", True)
    return _scatter_product(grad, values, index, perm, window, in_features, epilogue)


def gather_gemm_weight_grad(
    grad: Tensor, x: Tensor, index: Tensor, perm: Tensor, window: int, group: int
) -> Tensor:
    """The entries of ``grad.T @ x[:, perm]`` under the index: [R, E, G, V]."""
    return _outer_product(x, grad, index, perm, window, group, blocked_perm=False)


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
    epilogue = Epilogue(bias, activation, False)
    return _scatter_product(x, values, index, perm, out_features, out_features, epilogue)


def scatter_gemm_input_grad(grad: Tensor, values: Tensor, index: Tensor, perm: Tensor) -> Tensor:
    """The input's gradient in the transposed form: grad [M, O] -> [M, R*V]."""
    epilogue = Epilogue(values.new_empty(0), "none", True)
    return _gather_product(grad, values, index, perm, grad.shape[1], epilogue)


def scatter_gemm_weight_grad(
    grad: Tensor, x: Tensor, index: Tensor, perm: Tensor, group: int
) -> Tensor:
    """The values' gradient in the transposed form: [R, E, G, V]."""
    return _outer_product(grad, x, index, perm, grad.shape[1], group, blocked_perm=True)
