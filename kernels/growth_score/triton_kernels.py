"""Growth scores in Triton: tiles of the dense gradient, reduced to units before they are stored."""

# mypy: allow-untyped-defs

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def squared_gradient(
    left_ptr,  # [M, features of the tile's rows]
    right_ptr,  # [M, features of the tile's columns]
    row,
    row_mask,
    column,
    column_mask,
    tokens,
    left_stride_m,
    left_stride_f,
    right_stride_m,
    right_stride_f,
    WIDE: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """Squares of a tile of ``left.T @ right``; zero outside the masks."""
    accumulate: tl.constexpr = tl.float64 if WIDE else tl.float32
    left_at = left_ptr + row.to(tl.int64)[:, None] * left_stride_f
    right_at = right_ptr + column.to(tl.int64)[None, :] * right_stride_f
    total = tl.zeros((BLOCK_R, BLOCK_C), dtype=accumulate)
    for start in range(0, tokens, BLOCK_M):
        m = start + tl.arange(0, BLOCK_M)
        at = m.to(tl.int64)
        in_tokens = m < tokens
        left_mask = row_mask[:, None] & in_tokens[None, :]
        left = tl.load(left_at + at[None, :] * left_stride_m, mask=left_mask, other=0.0)
        right_mask = in_tokens[:, None] & column_mask[None, :]
        right = tl.load(right_at + at[:, None] * right_stride_m, mask=right_mask, other=0.0)
        if WIDE:
            total += tl.sum(left[:, :, None] * right[None, :, :], axis=1)
        else:
            total = tl.dot(left, right.to(left.dtype), total, input_precision="ieee")
    return total * total


@triton.jit
def sum_blocks(
    squares, ROWS: tl.constexpr, HEIGHT: tl.constexpr, COLUMNS: tl.constexpr, WIDTH: tl.constexpr
):
    """Sums of a [ROWS * HEIGHT, COLUMNS * WIDTH] tile over its blocks: [ROWS, COLUMNS]."""
    blocks = tl.reshape(squares, (ROWS, HEIGHT, COLUMNS, WIDTH))
    return tl.sum(tl.sum(blocks, axis=3), axis=1)


@triton.jit
def read_features(perm_ptr, feature, mask, HAS_PERM: tl.constexpr):
    """The input features at the given positions."""
    if HAS_PERM:
        feature = tl.load(perm_ptr + feature, mask=mask, other=0)
    return feature


@triton.jit
def block_squares_kernel(
    grad_ptr,  # [M, O]
    x_ptr,  # [M, I]
    perm_ptr,
    tokens,
    block_rows,
    block_columns,
    grad_stride_m,
    grad_stride_f,
    x_stride_m,
    x_stride_f,
    result_ptr,  # [O / SIZE, I / SIZE], contiguous
    SIZE: tl.constexpr,
    HAS_PERM: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCKS: tl.constexpr,
    PADDED: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """Sums of squares of BLOCKS x BLOCKS blocks, a [PADDED, PADDED] part of each at a time."""
    edge: tl.constexpr = BLOCKS * PADDED
    steps: tl.constexpr = (SIZE + PADDED - 1) // PADDED
    accumulate: tl.constexpr = tl.float64 if WIDE else tl.float32
    tiles = tl.cdiv(block_columns, BLOCKS)
    across = tl.program_id(0) % tiles * BLOCKS
    down = tl.program_id(0) // tiles * BLOCKS
    block = tl.arange(0, edge) // PADDED
    total = tl.zeros((BLOCKS, BLOCKS), dtype=accumulate)
    for step in range(steps * steps):
        high = step // steps * PADDED + tl.arange(0, edge) % PADDED
        wide = step % steps * PADDED + tl.arange(0, edge) % PADDED
        row_mask = (high < SIZE) & (down + block < block_rows)
        column_mask = (wide < SIZE) & (across + block < block_columns)
        position = (across + block) * SIZE + wide
        squares = squared_gradient(
            grad_ptr,
            x_ptr,
            (down + block) * SIZE + high,
            row_mask,
            read_features(perm_ptr, position, column_mask, HAS_PERM),
            column_mask,
            tokens,
            grad_stride_m,
            grad_stride_f,
            x_stride_m,
            x_stride_f,
            WIDE,
            edge,
            edge,
            BLOCK_M,
        )
        total += sum_blocks(squares, BLOCKS, PADDED, BLOCKS, PADDED)
    row = down + tl.arange(0, BLOCKS)
    column = across + tl.arange(0, BLOCKS)
    mask = (row < block_rows)[:, None] & (column < block_columns)[None, :]
    where = row.to(tl.int64)[:, None] * block_columns + column[None, :]
    tl.store(result_ptr + where, total, mask=mask)


@triton.jit
def diagonal_squares_kernel(
    long_ptr,  # [M, long * WIDTH]
    short_ptr,  # [M, short * WIDTH]
    perm_ptr,
    tokens,
    long,
    short,
    long_stride_m,
    long_stride_f,
    short_stride_m,
    short_stride_f,
    result_ptr,  # [ceil(short / BLOCKS), long], contiguous
    WIDTH: tl.constexpr,
    LONG_PERM: tl.constexpr,
    SHORT_PERM: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCKS: tl.constexpr,
    PADDED: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """Sums of squares of BLOCKS adjacent block diagonals over BLOCKS adjacent steps of each.

    Step t of diagonal d lies at (d + t, t): the tile spans 2 * BLOCKS positions of the longer
    side, and sheared by t its columns line up with the diagonals.
    """
    edge: tl.constexpr = BLOCKS * PADDED
    part = tl.program_id(0) // tl.cdiv(long, BLOCKS)
    diagonal = tl.program_id(0) % tl.cdiv(long, BLOCKS) * BLOCKS
    step = part * BLOCKS
    tall = tl.arange(0, 2 * edge)
    high = (diagonal + step + tall // PADDED) % long * WIDTH + tall % PADDED
    high_mask = tall % PADDED < WIDTH
    flat = tl.arange(0, edge)
    across = (step + flat // PADDED) * WIDTH + flat % PADDED
    across_mask = (flat % PADDED < WIDTH) & (step + flat // PADDED < short)
    squares = squared_gradient(
        long_ptr,
        short_ptr,
        read_features(perm_ptr, high, high_mask, LONG_PERM),
        high_mask,
        read_features(perm_ptr, across, across_mask, SHORT_PERM),
        across_mask,
        tokens,
        long_stride_m,
        long_stride_f,
        short_stride_m,
        short_stride_f,
        WIDE,
        2 * edge,
        edge,
        BLOCK_M,
    )
    blocks = sum_blocks(squares, 2 * BLOCKS, PADDED, BLOCKS, PADDED)
    d = tl.arange(0, BLOCKS)
    sheared = tl.gather(blocks, d[:, None] + d[None, :], axis=0)
    where = part.to(tl.int64) * long + diagonal + d
    tl.store(result_ptr + where, tl.sum(sheared, axis=1), mask=diagonal + d < long)


@triton.jit
def nm_candidates_kernel(
    grad_ptr,  # [M, R * tile]
    x_ptr,  # [M, in_features]
    index_ptr,  # [R, windows * n]
    perm_ptr,
    tokens,
    row_blocks,
    tile,
    in_features,
    windows,
    active,
    slots,
    keep,
    grad_stride_m,
    grad_stride_f,
    x_stride_m,
    x_stride_f,
    result_ptr,  # [2, R, windows, keep], contiguous
    HAS_PERM: tl.constexpr,
    WIDE: tl.constexpr,
    ROWS: tl.constexpr,
    HEIGHT: tl.constexpr,
    WINDOWS: tl.constexpr,
    SLOTS: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """The ``keep`` best inactive of ``slots`` slots, for ROWS row blocks and WINDOWS windows.

    The last window may be short; where it runs out of inactive slots, score -1 and slot 0.
    """
    tiles = tl.cdiv(row_blocks, ROWS)
    first_row = tl.program_id(0) % tiles * ROWS
    first_window = tl.program_id(0) // tiles * WINDOWS
    r = first_row + tl.arange(0, ROWS)
    w = first_window + tl.arange(0, WINDOWS)
    flat_row = tl.arange(0, ROWS * HEIGHT)
    row_block = first_row + flat_row // HEIGHT
    row_mask = (flat_row % HEIGHT < tile) & (row_block < row_blocks)
    flat_column = tl.arange(0, WINDOWS * SLOTS)
    column_window = first_window + flat_column // SLOTS
    position = column_window * slots + flat_column % SLOTS
    column_mask = (flat_column % SLOTS < slots) & (position < in_features)
    squares = squared_gradient(
        grad_ptr,
        x_ptr,
        row_block * tile + flat_row % HEIGHT,
        row_mask,
        read_features(perm_ptr, position, column_mask, HAS_PERM),
        column_mask,
        tokens,
        grad_stride_m,
        grad_stride_f,
        x_stride_m,
        x_stride_f,
        WIDE,
        ROWS * HEIGHT,
        WINDOWS * SLOTS,
        BLOCK_M,
    )
    scores = tl.sqrt(tl.sum(tl.reshape(squares, (ROWS, HEIGHT, WINDOWS, SLOTS)), axis=1))
    scores = tl.where(scores != scores, float("inf"), scores)
    slot = tl.arange(0, SLOTS)[None, None, :]
    present = (slot < slots) & (w[None, :, None] * slots + slot < in_features)
    scores = tl.where(present, scores, float("-inf"))
    mask = (r < row_blocks)[:, None] & (w < windows)[None, :]
    group = r.to(tl.int64)[:, None] * windows + w[None, :]
    for i in range(active):
        taken = tl.load(index_ptr + group * active + i, mask=mask, other=0).to(tl.int32)
        scores = tl.where(slot == taken[:, :, None], float("-inf"), scores)
    slot_group = (r.to(tl.int64) + row_blocks)[:, None] * windows + w[None, :]
    for i in range(keep):
        best = tl.max(scores, axis=2)
        missing = best == float("-inf")
        chosen = tl.min(tl.where(scores == best[:, :, None], slot, SLOTS), axis=2)
        chosen = tl.where(missing, 0, chosen)
        tl.store(result_ptr + group * keep + i, tl.where(missing, -1.0, best), mask=mask)
        chosen_slot = chosen.to(result_ptr.dtype.element_ty)
        tl.store(result_ptr + slot_group * keep + i, chosen_slot, mask=mask)
        scores = tl.where(slot == chosen[:, :, None], float("-inf"), scores)
