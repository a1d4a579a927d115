"""Launches of the weight gradient's kernels for gather-GEMM and scatter-GEMM."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from padst_fx.kernels import triton_call, triton_layout
from padst_fx.kernels.gather_gemm.columns import entries_per_window
from padst_fx.kernels.integers import ceil_div
from padst_fx.kernels.precision import accumulation_dtype
from padst_fx.kernels.tiles.calculated import SMALLEST_DOT
from padst_fx.kernels.tiles.problem import Problem, Tiles
from padst_fx.kernels.tiles.table import lookup
from padst_fx.kernels.triton_call import dot_precision, has_matrix_units, needs_long

FEWEST_DOT_TOKENS = 64
WIDEST_WINDOW = 64

_kernels = triton_call.imported_late("padst_fx.kernels.gather_gemm.triton_weight_grad_kernels")


@dataclass(frozen=True)
class Work:
    """Products of gathered columns and row blocks, as a kernel sees them."""

    gathered: Tensor
    blocked: Tensor
    index: Tensor
    window: int
    group: int
    tile: int

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return (*self.index.shape, self.group, self.tile)

    @property
    def per_window(self) -> int:
        return entries_per_window(self.index.shape[1], self.window, self.gathered.shape[1])

    def tiles(self, kernel: str, *sizes: int) -> Tiles:
        tokens, dtype = self.blocked.shape[0], self.blocked.dtype
        return lookup(self.blocked.device, Problem(kernel, dtype, tokens, sizes))


def outer_product(
    gathered: Tensor,
    blocked: Tensor,
    index: Tensor,
    perm: Tensor,
    window: int,
    group: int,
    blocked_perm: bool,
) -> Tensor:
    """Products of gathered columns and row blocks, summed over tokens: [R, E, G, V].

    ``perm`` permutes the blocked side if ``blocked_perm``, else the gathered one.
    """
    tokens, dtype = blocked.shape[0], blocked.dtype
    tile = blocked.shape[1] // index.shape[0]
    units = has_matrix_units(dtype) and tokens >= FEWEST_DOT_TOKENS
    dot = tile >= SMALLEST_DOT and dtype != torch.float64
    windows = not dot and units and group == 1 and window <= WIDEST_WINDOW
    rows, lanes = triton_layout.permuted_rows, triton_layout.permuted_lanes
    whole = windows or (dot and group >= triton_layout.NARROW)
    present = perm if perm.numel() else None
    gathered = (rows if whole else lanes)(gathered, None if blocked_perm else present)
    blocked = (rows if windows or dot else lanes)(blocked, present if blocked_perm else None)
    work = Work(gathered, blocked, index, window, group, tile)
    if dot:
        return _dot(work)
    return _windows(work) if windows else _sum(work)


def _launched(
    work: Work, kernel: Any, programs: int, shortest: int, numbers: tuple[int, ...], **options: Any
) -> Tensor:
    """The kernel's result, its tokens cut into splits that are added up afterwards."""
    tokens, dtype = work.blocked.shape[0], work.blocked.dtype
    splits = triton_call.token_splits(programs, tokens, shortest)
    wide = accumulation_dtype(dtype) if splits > 1 else dtype
    result = torch.empty((splits, *work.shape), dtype=wide, device=work.blocked.device)
    triton_call.launch(
        kernel,
        programs * splits,
        work.gathered,
        work.blocked,
        work.index.contiguous(),
        tokens,
        ceil_div(tokens, splits),
        *numbers,
        *work.gathered.stride(),
        *work.blocked.stride(),
        result,
        TILE=work.tile,
        LONG=needs_long(work.gathered, work.blocked, result),
        **options,
    )
    return triton_layout.sum_parts(result, dtype)


def _dot(work: Work) -> Tensor:
    (row_blocks, entries), group = work.index.shape, work.group
    tiles = work.tiles("outer_dot", row_blocks, group, work.tile, entries * group)
    deep = tiles["BLOCK_C"]
    if group >= SMALLEST_DOT and deep % group:
        steps = entries * ceil_div(group, deep)
    else:
        steps = ceil_div(entries * group, deep)
    programs = row_blocks * steps * ceil_div(work.tile, tiles["BLOCK_V"])
    numbers = (row_blocks, entries, work.per_window, work.window)
    precision = dot_precision(work.blocked.dtype)
    return _launched(
        work,
        _kernels().outer_dot_kernel,
        programs,
        256,
        numbers,
        GROUP=group,
        PRECISION=precision,
        **tiles,
    )


def _sum(work: Work) -> Tensor:
    row_blocks, entries = work.index.shape
    size = row_blocks * entries * work.group * work.tile
    tiles = work.tiles("outer_sum", size)
    numbers = (row_blocks, entries, work.per_window, work.window)
    wide = work.blocked.dtype == torch.float64
    programs = ceil_div(size, tiles["BLOCK_N"])
    return _launched(
        work,
        _kernels().outer_sum_kernel,
        programs,
        256,
        numbers,
        GROUP=work.group,
        WIDE=wide,
        **tiles,
    )


def _windows(work: Work) -> Tensor:
    row_blocks, features = work.index.shape[0], work.gathered.shape[1]
    tiles = work.tiles("outer_windows", row_blocks * work.tile, work.window)
    windows = ceil_div(features, work.window)
    programs = ceil_div(windows, tiles["WINDOWS"]) * ceil_div(
        row_blocks * work.tile, tiles["BLOCK_V"]
    )
    numbers = (row_blocks, windows, work.per_window, work.window, features)
    precision = dot_precision(work.blocked.dtype)
    return _launched(
        work, _kernels().outer_windows_kernel, programs, 256, numbers, PRECISION=precision, **tiles
    )
