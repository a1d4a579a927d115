"""Values of row blocks written into a dense matrix, and read out of one."""

# mypy: allow-untyped-defs

from __future__ import annotations

import triton
import triton.language as tl

from padst_fx.kernels.gather_gemm.triton_weight_grad_kernels import place_of_value
from padst_fx.kernels.triton_layout_kernels import as_offset


@triton.jit
def value_positions(
    index_ptr,
    size,
    entries,
    per_window,
    window,
    stride_blocked,
    stride_gathered,
    GROUP: tl.constexpr,
    TILE: tl.constexpr,
    LONG: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """BLOCK values [R, E, GROUP, TILE] of a program: (where among them, in the matrix, mask)."""
    flat = as_offset(tl.program_id(0), LONG) * BLOCK + tl.arange(0, BLOCK)
    mask = flat < size
    column, feature = place_of_value(
        flat, mask, index_ptr, entries, per_window, window, GROUP, TILE
    )
    at = as_offset(feature, LONG) * stride_blocked + as_offset(column, LONG) * stride_gathered
    return flat, at, mask


@triton.jit
def write_values_kernel(
    values_ptr,  # [R, E, GROUP, TILE]
    index_ptr,  # [R, E]
    size,
    entries,
    per_window,
    window,
    stride_blocked,
    stride_gathered,
    dense_ptr,  # zero
    GROUP: tl.constexpr,
    TILE: tl.constexpr,
    LONG: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Every value at its row block's feature and its entry's column."""
    flat, at, mask = value_positions(
        index_ptr,
        size,
        entries,
        per_window,
        window,
        stride_blocked,
        stride_gathered,
        GROUP,
        TILE,
        LONG,
        BLOCK,
    )
    tl.store(dense_ptr + at, tl.load(values_ptr + flat, mask=mask), mask=mask)


@triton.jit
def read_values_kernel(
    dense_ptr,
    index_ptr,  # [R, E]
    size,
    entries,
    per_window,
    window,
    stride_blocked,
    stride_gathered,
    values_ptr,  # [R, E, GROUP, TILE]
    GROUP: tl.constexpr,
    TILE: tl.constexpr,
    LONG: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Every value from its row block's feature and its entry's column."""
    flat, at, mask = value_positions(
        index_ptr,
        size,
        entries,
        per_window,
        window,
        stride_blocked,
        stride_gathered,
        GROUP,
        TILE,
        LONG,
        BLOCK,
    )
    tl.store(values_ptr + flat, tl.load(dense_ptr + at, mask=mask), mask=mask)
