"""Launches of the Triton kernels for growth scores.

Tiles come from the shapes alone, nothing is tuned or read back: safe under CUDA graphs. Many tokens
are copied through the permutation once, because every tile of the gradient reads them again.
"""

from __future__ import annotations

import torch
from torch import Tensor

from padst_fx.kernels import triton_call, triton_layout
from padst_fx.kernels.growth_score import cpu
from padst_fx.kernels.integers import ceil_div, power_of_two
from padst_fx.kernels.precision import accumulation_dtype

WIDEST_SHEARED = 16
TALLEST_TILE = 64
MOST_SLOTS = 256


def _edge(dtype: torch.dtype) -> int:
    return 16 if dtype == torch.float64 else 64


def _block_m(dtype: torch.dtype) -> int:
    return {torch.float64: 1, torch.float32: 16}.get(dtype, 32)


def block_tiles(size: int, dtype: torch.dtype) -> dict[str, int]:
    """Blocks per tile edge and the part of a block that a tile holds."""
    edge = _edge(dtype)
    padded = min(edge, power_of_two(size))
    return {"BLOCKS": edge // padded, "PADDED": padded, "BLOCK_M": _block_m(dtype), "num_warps": 8}


def diagonal_tiles(width: int, dtype: torch.dtype) -> dict[str, int]:
    """Diagonals and steps per tile, for widths below ``WIDEST_SHEARED``."""
    edge, padded = _edge(dtype), power_of_two(width)
    blocks, warps = max(1, edge // padded), 16 if dtype == torch.float32 else 8
    return {"BLOCKS": blocks, "PADDED": padded, "BLOCK_M": _block_m(dtype), "num_warps": warps}


def candidate_tiles(tile: int, slots: int, dtype: torch.dtype) -> dict[str, int]:
    """Row blocks and windows per tile, for tiles and windows within the limits above."""
    edge, height, wide = _edge(dtype), power_of_two(tile), power_of_two(slots)
    rows = max(1, min(edge, 4096 // wide) // height)
    sizes = {"ROWS": rows, "HEIGHT": height, "WINDOWS": max(1, edge // wide), "SLOTS": wide}
    return {**sizes, "BLOCK_M": _block_m(dtype), "num_warps": 8}


def _read_through(x: Tensor, perm: Tensor) -> tuple[Tensor, Tensor]:
    """The input, and the permutation that is still to be read through."""
    if not perm.numel() or x.shape[0] <= triton_layout.FEW_TOKENS:
        return x, perm
    return triton_layout.permuted_rows(x, perm), perm[:0]


def _block_squares(grad: Tensor, x: Tensor, perm: Tensor, size: int) -> Tensor:
    """Sums of squares of the gradient's blocks: [O / size, I / size]."""
    from padst_fx.kernels.growth_score.triton_kernels import block_squares_kernel

    x, perm = _read_through(x, perm)
    rows, columns = grad.shape[1] // size, x.shape[1] // size
    tiles = block_tiles(size, grad.dtype)
    dtype = accumulation_dtype(grad.dtype)
    result = torch.empty((rows, columns), dtype=dtype, device=grad.device)
    triton_call.launch(
        block_squares_kernel,
        ceil_div(columns, tiles["BLOCKS"]) * ceil_div(rows, tiles["BLOCKS"]),
        grad,
        x,
        perm.contiguous(),
        grad.shape[0],
        rows,
        columns,
        *grad.stride(),
        *x.stride(),
        result,
        SIZE=size,
        HAS_PERM=perm.numel() > 0,
        WIDE=grad.dtype == torch.float64,
        **tiles,
    )
    return result


def _wrapped_diagonal_sums(blocks: Tensor) -> Tensor:
    """Sums over the wrapped diagonals of a small matrix, through a sheared view."""
    blocks = blocks if blocks.shape[0] >= blocks.shape[1] else blocks.t()
    long, short = blocks.shape
    twice = torch.cat([blocks, blocks])
    return twice.as_strided((long, short), (short, short + 1)).sum(1)


def _diagonal_squares(grad: Tensor, x: Tensor, perm: Tensor, width: int) -> Tensor:
    """Sums of squares of narrow block diagonals: [max(O, I) / width]."""
    from padst_fx.kernels.growth_score.triton_kernels import diagonal_squares_kernel

    x, perm = _read_through(x, perm)
    tall = grad.shape[1] >= x.shape[1]
    long_side, short_side = (grad, x) if tall else (x, grad)
    long, short = long_side.shape[1] // width, short_side.shape[1] // width
    tiles = diagonal_tiles(width, grad.dtype)
    parts = ceil_div(short, tiles["BLOCKS"])
    result = torch.empty((parts, long), dtype=accumulation_dtype(grad.dtype), device=grad.device)
    triton_call.launch(
        diagonal_squares_kernel,
        ceil_div(long, tiles["BLOCKS"]) * parts,
        long_side,
        short_side,
        perm.contiguous(),
        grad.shape[0],
        long,
        short,
        *long_side.stride(),
        *short_side.stride(),
        result,
        WIDTH=width,
        LONG_PERM=perm.numel() > 0 and not tall,
        SHORT_PERM=perm.numel() > 0 and tall,
        WIDE=grad.dtype == torch.float64,
        **tiles,
    )
    return result.sum(0)


def diag_growth_score(grad: Tensor, x: Tensor, perm: Tensor, width: int, run: int) -> Tensor:
    """The gradient's norm over every run of block diagonals: [max(O, I) / width / run]."""
    if width < WIDEST_SHEARED:
        squares = _diagonal_squares(grad, x, perm, width)
    else:
        squares = _wrapped_diagonal_sums(_block_squares(grad, x, perm, width))
    return squares.view(-1, run).sum(1).sqrt()


def block_growth_score(grad: Tensor, x: Tensor, perm: Tensor, size: int) -> Tensor:
    """The Frobenius norm of every block of the gradient: [O / size, I / size]."""
    return _block_squares(grad, x, perm, size).sqrt()


def nm_growth_score(grad: Tensor, x: Tensor, index: Tensor, perm: Tensor, n: int, m: int) -> Tensor:
    """The best inactive slots of every group: [2, R, ceil(I / m), min(n, m - n)].

    A unit's score is the gradient's norm over the rows of the tile; [0] holds scores, descending,
    [1] their slots, ties to the smaller slot. A NaN counts as infinite. Where the last window is
    short of inactive slots, the score is -1 and the slot 0. Tiles above ``TALLEST_TILE`` and
    windows above ``MOST_SLOTS`` take the plain torch version.
    """
    from padst_fx.kernels.growth_score.triton_kernels import nm_candidates_kernel

    row_blocks, windows = index.shape[0], ceil_div(x.shape[1], m)
    tile, keep = grad.shape[1] // row_blocks, min(n, m - n)
    if tile > TALLEST_TILE or m > MOST_SLOTS:
        return cpu.nm_growth_score(grad, x, index, perm, n, m)
    x, perm = _read_through(x, perm)
    tiles = candidate_tiles(tile, m, grad.dtype)
    dtype = accumulation_dtype(grad.dtype)
    result = torch.empty((2, row_blocks, windows, keep), dtype=dtype, device=grad.device)
    triton_call.launch(
        nm_candidates_kernel,
        ceil_div(row_blocks, tiles["ROWS"]) * ceil_div(windows, tiles["WINDOWS"]),
        grad,
        x,
        index.contiguous(),
        perm.contiguous(),
        grad.shape[0],
        row_blocks,
        tile,
        x.shape[1],
        windows,
        n,
        m,
        keep,
        *grad.stride(),
        *x.stride(),
        result,
        HAS_PERM=perm.numel() > 0,
        WIDE=grad.dtype == torch.float64,
        **tiles,
    )
    return result


def weight_growth_score(grad: Tensor, x: Tensor, perm: Tensor) -> Tensor:
    """The magnitude of every entry of the gradient, dense by definition: [O, I]."""
    return cpu.weight_growth_score(grad, x, perm)
