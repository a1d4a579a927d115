"""The weight gradient of gather-GEMM and scatter-GEMM in Triton: gathered times blocked."""

# mypy: allow-untyped-defs

from __future__ import annotations

import triton
import triton.language as tl

from padst_fx.kernels.gather_gemm.triton_kernels import block_of_columns, column_steps
from padst_fx.kernels.triton_layout_kernels import as_offset


@triton.jit
def outer_dot_kernel(
    gathered_ptr,  # [M, features]
    blocked_ptr,  # [M, R * TILE]
    index_ptr,  # [R, E]
    tokens,
    split_tokens,
    row_blocks,
    entries,
    per_window,
    window,
    gathered_stride_m,
    gathered_stride_f,
    blocked_stride_m,
    blocked_stride_f,
    result_ptr,  # [splits, R, E, GROUP, TILE], contiguous
    GROUP: tl.constexpr,
    TILE: tl.constexpr,
    PRECISION: tl.constexpr,
    LONG: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """A [BLOCK_C, BLOCK_V] tile of one row block's values, over one split of the tokens."""
    tiles: tl.constexpr = (TILE + BLOCK_V - 1) // BLOCK_V
    steps = column_steps(entries, GROUP, BLOCK_C)
    v = tl.program_id(0) % tiles * BLOCK_V + tl.arange(0, BLOCK_V)
    step = tl.program_id(0) // tiles % steps
    r = tl.program_id(0) // tiles // steps % row_blocks
    split = tl.program_id(0) // tiles // steps // row_blocks
    c, column, mask = block_of_columns(
        index_ptr, r, step, entries, per_window, window, GROUP, BLOCK_C
    )
    gathered_at = gathered_ptr + as_offset(column, LONG)[:, None] * gathered_stride_f
    blocked_at = blocked_ptr + as_offset(r * TILE + v, LONG)[None, :] * blocked_stride_f
    end = min(tokens, (split + 1) * split_tokens)
    total = tl.zeros((BLOCK_C, BLOCK_V), dtype=tl.float32)
    for start in range(split * split_tokens, end, BLOCK_M):
        m = start + tl.arange(0, BLOCK_M)
        row = as_offset(m, LONG)
        left_mask = mask[:, None] & (m < end)[None, :]
        left = tl.load(gathered_at + row[None, :] * gathered_stride_m, mask=left_mask, other=0.0)
        right_mask = (m < end)[:, None] & (v < TILE)[None, :]
        right = tl.load(blocked_at + row[:, None] * blocked_stride_m, mask=right_mask, other=0.0)
        total = tl.dot(left, right, total, input_precision=PRECISION)
    first = (as_offset(split, LONG) * row_blocks + r) * entries * (GROUP * TILE)
    where = result_ptr + first + c[:, None] * TILE + v[None, :]
    stored = mask[:, None] & (v < TILE)[None, :]
    tl.store(where, total.to(result_ptr.dtype.element_ty), mask=stored)


@triton.jit
def place_of_value(
    flat, mask, index_ptr, entries, per_window, window, GROUP: tl.constexpr, TILE: tl.constexpr
):
    """Of values [R, E, GROUP, TILE] by their flat positions: (gathered column, blocked feature)."""
    entry = flat // (GROUP * TILE)
    slot = tl.load(index_ptr + entry, mask=mask, other=0).to(tl.int32)
    column = entry % entries // per_window * window + slot * GROUP + flat // TILE % GROUP
    return column, entry // entries * TILE + flat % TILE


@triton.jit
def outer_sum_kernel(
    gathered_ptr,  # [M, features]
    blocked_ptr,  # [M, R * TILE]
    index_ptr,  # [R, E]
    tokens,
    split_tokens,
    row_blocks,
    entries,
    per_window,
    window,
    gathered_stride_m,
    gathered_stride_f,
    blocked_stride_m,
    blocked_stride_f,
    result_ptr,  # [splits, R, E, GROUP, TILE], contiguous
    GROUP: tl.constexpr,
    TILE: tl.constexpr,
    WIDE: tl.constexpr,
    LONG: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """BLOCK_N adjacent values, over one split of the tokens, without tl.dot."""
    accumulate: tl.constexpr = tl.float64 if WIDE else tl.float32
    size = row_blocks * entries * (GROUP * TILE)
    parts = tl.cdiv(size, BLOCK_N)
    flat = tl.program_id(0) % parts * BLOCK_N + tl.arange(0, BLOCK_N)
    split = tl.program_id(0) // parts
    mask = flat < size
    column, feature = place_of_value(
        flat, mask, index_ptr, entries, per_window, window, GROUP, TILE
    )
    gathered_at = gathered_ptr + as_offset(column, LONG)[:, None] * gathered_stride_f
    blocked_at = blocked_ptr + as_offset(feature, LONG)[:, None] * blocked_stride_f
    end = min(tokens, (split + 1) * split_tokens)
    total = tl.zeros((BLOCK_N, BLOCK_M), dtype=accumulate)
    for start in range(split * split_tokens, end, BLOCK_M):
        m = start + tl.arange(0, BLOCK_M)
        row = as_offset(m, LONG)[None, :]
        both = mask[:, None] & (m < end)[None, :]
        left = tl.load(gathered_at + row * gathered_stride_m, mask=both, other=0.0)
        right = tl.load(blocked_at + row * blocked_stride_m, mask=both, other=0.0)
        total += left.to(accumulate) * right.to(accumulate)
    summed = tl.sum(total, axis=1).to(result_ptr.dtype.element_ty)
    tl.store(result_ptr + as_offset(split, LONG) * size + flat, summed, mask=mask)


@triton.jit
def outer_windows_kernel(
    gathered_ptr,  # [M, features]
    blocked_ptr,  # [M, R * TILE]
    index_ptr,  # [R, windows * per_window]
    tokens,
    split_tokens,
    row_blocks,
    windows,
    per_window,
    window,
    features,
    gathered_stride_m,
    gathered_stride_f,
    blocked_stride_m,
    blocked_stride_f,
    result_ptr,  # [splits, R, windows * per_window, 1, TILE], contiguous
    TILE: tl.constexpr,
    PRECISION: tl.constexpr,
    LONG: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_V: tl.constexpr,
    WINDOWS: tl.constexpr,
    SLOTS: tl.constexpr,
):
    """Dense gradient of WINDOWS windows and BLOCK_V features; only active slots are stored.

    For entries of one column in windows that SLOTS holds: a tile of the dense product is cheaper
    on matrix units than every entry's own sum is without them.
    """
    across = tl.cdiv(windows, WINDOWS)
    down = tl.cdiv(row_blocks * TILE, BLOCK_V)
    first = tl.program_id(0) % across * WINDOWS
    feature = tl.program_id(0) // across % down * BLOCK_V + tl.arange(0, BLOCK_V)
    split = tl.program_id(0) // across // down
    flat = tl.arange(0, WINDOWS * SLOTS)
    column = (first + flat // SLOTS) * window + flat % SLOTS
    in_column = (flat % SLOTS < window) & (column < features)
    in_feature = feature < row_blocks * TILE
    gathered_at = gathered_ptr + as_offset(column, LONG)[None, :] * gathered_stride_f
    blocked_at = blocked_ptr + as_offset(feature, LONG)[:, None] * blocked_stride_f
    end = min(tokens, (split + 1) * split_tokens)
    total = tl.zeros((BLOCK_V, WINDOWS * SLOTS), dtype=tl.float32)
    for start in range(split * split_tokens, end, BLOCK_M):
        m = start + tl.arange(0, BLOCK_M)
        row = as_offset(m, LONG)
        left_mask = in_feature[:, None] & (m < end)[None, :]
        left = tl.load(blocked_at + row[None, :] * blocked_stride_m, mask=left_mask, other=0.0)
        right_mask = (m < end)[:, None] & in_column[None, :]
        right = tl.load(gathered_at + row[:, None] * gathered_stride_m, mask=right_mask, other=0.0)
        total = tl.dot(left, right, total, input_precision=PRECISION)
    dense = tl.reshape(total, (BLOCK_V, WINDOWS, SLOTS))
    w = first + tl.arange(0, WINDOWS)
    mask = in_feature[:, None] & (w < windows)[None, :]
    r = as_offset(feature // TILE, LONG)[:, None]
    row_blocks_before = as_offset(split, LONG) * row_blocks
    for i in range(per_window):
        entry = w[None, :] * per_window + i
        slot = tl.load(index_ptr + r * (windows * per_window) + entry, mask=mask, other=0)
        chosen = slot.to(tl.int32)[:, :, None] == tl.arange(0, SLOTS)[None, None, :]
        active = tl.sum(tl.where(chosen, dense, 0.0), axis=2)
        at = (row_blocks_before + r) * (windows * per_window) + entry
        where = result_ptr + at * TILE + (feature % TILE)[:, None]
        tl.store(where, active.to(result_ptr.dtype.element_ty), mask=mask)
