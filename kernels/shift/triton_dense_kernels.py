"""Width-1 diagonals written as a dense matrix, and read out of one."""

# mypy: allow-untyped-defs

from __future__ import annotations

import triton
import triton.language as tl

from padst_fx.kernels.triton_layout_kernels import as_offset


@triton.jit
def write_diagonals_kernel(
    values_ptr,  # [K, min(rows, columns)]
    slots_ptr,  # [max(rows, columns)]: for each offset its diagonal, or -1
    rows,
    columns,
    dense_ptr,  # [rows, columns]
    LONG: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """A [BLOCK_R, BLOCK_C] tile of the matrix: every element's diagonal is looked up."""
    across = tl.cdiv(columns, BLOCK_C)
    row = (tl.program_id(0) // across * BLOCK_R + tl.arange(0, BLOCK_R))[:, None]
    column = (tl.program_id(0) % across * BLOCK_C + tl.arange(0, BLOCK_C))[None, :]
    inside = (row < rows) & (column < columns)
    if rows >= columns:
        offset, along = row - column, column + tl.zeros_like(row)
    else:
        offset, along = column - row, row + tl.zeros_like(column)
    offset = tl.where(offset < 0, offset + max(rows, columns), offset)
    slot = tl.load(slots_ptr + offset, mask=inside, other=-1)
    value = values_ptr + as_offset(slot, LONG) * min(rows, columns) + along
    read = tl.load(value, mask=inside & (slot >= 0), other=0)
    tl.store(dense_ptr + as_offset(row, LONG) * columns + column, read, mask=inside)


@triton.jit
def read_diagonals_kernel(
    dense_ptr,
    offsets_ptr,  # [K]
    short,
    long,
    stride_short,
    stride_long,
    values_ptr,  # [K, short]
    LONG: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Entry t of diagonal k from (t, t + offset) of the shorter and the longer side."""
    parts = tl.cdiv(short, BLOCK)
    k = tl.program_id(0) // parts
    t = tl.program_id(0) % parts * BLOCK + tl.arange(0, BLOCK)
    moved = t + tl.load(offsets_ptr + k)
    moved = tl.where(moved >= long, moved - long, moved)
    at = as_offset(t, LONG) * stride_short + as_offset(moved, LONG) * stride_long
    read = tl.load(dense_ptr + at, mask=t < short)
    tl.store(values_ptr + as_offset(k, LONG) * short + t, read, mask=t < short)
