"""Width-1 wrapped diagonals in Triton."""

# mypy: allow-untyped-defs

from __future__ import annotations

import triton
import triton.language as tl

from padst_fx.kernels.triton_epilogue import store_result
from padst_fx.kernels.triton_layout_kernels import as_offset, tile_of_program


@triton.jit
def shift_product_kernel(
    source_ptr,  # [readable, source_features]
    values_ptr,  # [K, min(source_features, result_features)]
    offsets_ptr,  # [K]
    perm_ptr,
    bias_ptr,
    tokens,
    readable,
    source_features,
    result_features,
    diagonals,
    source_stride_m,
    source_stride_f,
    result_ptr,  # [tokens, result_features], contiguous
    SPREAD: tl.constexpr,
    READ_PERM: tl.constexpr,
    WRITE_PERM: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    ACTIVATION: tl.constexpr,
    WIDE: tl.constexpr,
    LONG: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_F: tl.constexpr,
    BLOCK_K: tl.constexpr,
    UNROLL: tl.constexpr,
):
    """One [BLOCK_M, BLOCK_F] tile of the result, BLOCK_K diagonals at a time.

    SPREAD: the result is the longer side, feature f takes source ``f - offset`` where there is
    one. Otherwise the result is the shorter side and feature f takes source ``f + offset``.
    The sums of the BLOCK_K diagonals are kept apart until the end.
    """
    accumulate: tl.constexpr = tl.float64 if WIDE else tl.float32
    m, f = tile_of_program(result_features, BLOCK_M, BLOCK_F)
    in_result = f < result_features
    rows = source_ptr + as_offset(m, LONG) * source_stride_m
    short = min(source_features, result_features)
    total = tl.zeros((BLOCK_K, BLOCK_F, BLOCK_M), dtype=accumulate)
    for start in tl.range(0, diagonals, BLOCK_K, loop_unroll_factor=UNROLL):
        k = start + tl.arange(0, BLOCK_K)
        offset = tl.load(offsets_ptr + k, mask=k < diagonals, other=0)
        mask = (k < diagonals)[:, None] & in_result[None, :]
        if SPREAD:
            column = f[None, :] - offset[:, None]
            column = tl.where(column < 0, column + result_features, column)
            mask = mask & (column < source_features)
            at = column
        else:
            column = f[None, :] + offset[:, None]
            column = tl.where(column >= source_features, column - source_features, column)
            at = f[None, :]
        weight = tl.load(values_ptr + as_offset(k, LONG)[:, None] * short + at, mask=mask, other=0)
        if READ_PERM:
            column = tl.load(perm_ptr + column, mask=mask, other=0)
        where = rows[None, None, :] + as_offset(column, LONG)[:, :, None] * source_stride_f
        read = tl.load(where, mask=mask[:, :, None] & (m < readable)[None, None, :], other=0)
        total += read.to(accumulate) * weight.to(accumulate)[:, :, None]
    store_result(
        tl.trans(tl.sum(total, axis=0)),
        bias_ptr,
        perm_ptr,
        result_ptr,
        m,
        f,
        in_result,
        tokens,
        result_features,
        WRITE_PERM,
        HAS_BIAS,
        ACTIVATION,
        LONG,
    )


@triton.jit
def shift_weight_grad_kernel(
    still_ptr,  # [M, short]
    moving_ptr,  # [M, long]
    offsets_ptr,  # [K]
    tokens,
    split_tokens,
    short,
    long,
    diagonals,
    still_stride_m,
    still_stride_f,
    moving_stride_m,
    moving_stride_f,
    result_ptr,  # [splits, K, short], contiguous
    WIDE: tl.constexpr,
    LONG: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_F: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """BLOCK_F entries of BLOCK_K diagonals, summed over one split of the tokens."""
    accumulate: tl.constexpr = tl.float64 if WIDE else tl.float32
    tiles = tl.cdiv(short, BLOCK_F)
    parts = tl.cdiv(diagonals, BLOCK_K)
    f = tl.program_id(0) % tiles * BLOCK_F + tl.arange(0, BLOCK_F)
    k = tl.program_id(0) // tiles % parts * BLOCK_K + tl.arange(0, BLOCK_K)
    split = tl.program_id(0) // tiles // parts
    mask = (k < diagonals)[:, None] & (f < short)[None, :]
    offset = tl.load(offsets_ptr + k, mask=k < diagonals, other=0)
    moved = f[None, :] + offset[:, None]
    moved = tl.where(moved >= long, moved - long, moved)
    still_at = still_ptr + as_offset(f, LONG)[:, None] * still_stride_f
    moving_at = moving_ptr + as_offset(moved, LONG)[:, :, None] * moving_stride_f
    end = min(tokens, (split + 1) * split_tokens)
    total = tl.zeros((BLOCK_K, BLOCK_F, BLOCK_M), dtype=accumulate)
    for start in range(split * split_tokens, end, BLOCK_M):
        m = start + tl.arange(0, BLOCK_M)
        row = as_offset(m, LONG)
        still_mask = (f < short)[:, None] & (m < end)[None, :]
        left = tl.load(still_at + row[None, :] * still_stride_m, mask=still_mask, other=0)
        moving_mask = mask[:, :, None] & (m < end)[None, None, :]
        moving_rows = moving_at + row[None, None, :] * moving_stride_m
        right = tl.load(moving_rows, mask=moving_mask, other=0)
        total += left.to(accumulate)[None, :, :] * right.to(accumulate)
    where = (as_offset(split, LONG) * diagonals + k)[:, None] * short + f[None, :]
    tl.store(result_ptr + where, tl.sum(total, axis=2).to(result_ptr.dtype.element_ty), mask=mask)


@triton.jit
def diagonal_slots_kernel(
    offsets_ptr, diagonals, long, result_ptr, BLOCK: tl.constexpr, BLOCK_K: tl.constexpr
):
    """For each of ``long`` offsets its position among the active ones, or -1."""
    d = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    slot = tl.full((BLOCK,), -1, tl.int32)
    for start in range(0, diagonals, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        offset = tl.load(offsets_ptr + k, mask=k < diagonals, other=-1)
        found = tl.where(offset[None, :] == d[:, None], k[None, :], -1)
        slot = tl.maximum(slot, tl.max(found, axis=1))
    tl.store(result_ptr + d, slot, mask=d < long)


@triton.jit
def shift_weight_grad_dot_kernel(
    still_ptr,  # [M, short]
    moving_ptr,  # [M, long]
    slots_ptr,  # [long]
    tokens,
    split_tokens,
    short,
    long,
    diagonals,
    still_stride_m,
    still_stride_f,
    moving_stride_m,
    moving_stride_f,
    result_ptr,  # [splits, K, short], contiguous
    PRECISION: tl.constexpr,
    LONG: tl.constexpr,
    LONG_RESULT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_L: tl.constexpr,
):
    """A [BLOCK_S, BLOCK_L] tile of the dense gradient, of which active diagonals are stored.

    Entry (s, l) of ``still.T @ moving`` lies on diagonal ``l - s`` at position s, and nowhere else.
    """
    across = tl.cdiv(short, BLOCK_S)
    down = tl.cdiv(long, BLOCK_L)
    s = tl.program_id(0) % across * BLOCK_S + tl.arange(0, BLOCK_S)
    at = tl.program_id(0) // across % down * BLOCK_L + tl.arange(0, BLOCK_L)
    split = tl.program_id(0) // across // down
    still_at = still_ptr + as_offset(s, LONG)[:, None] * still_stride_f
    moving_at = moving_ptr + as_offset(at, LONG)[None, :] * moving_stride_f
    end = min(tokens, (split + 1) * split_tokens)
    total = tl.zeros((BLOCK_S, BLOCK_L), dtype=tl.float32)
    for start in range(split * split_tokens, end, BLOCK_M):
        m = start + tl.arange(0, BLOCK_M)
        row = as_offset(m, LONG)
        still_mask = (s < short)[:, None] & (m < end)[None, :]
        left = tl.load(still_at + row[None, :] * still_stride_m, mask=still_mask, other=0)
        moving_mask = (m < end)[:, None] & (at < long)[None, :]
        right = tl.load(moving_at + row[:, None] * moving_stride_m, mask=moving_mask, other=0)
        total = tl.dot(left, right, total, input_precision=PRECISION)
    d = at[None, :] - s[:, None]
    d = tl.where(d < 0, d + long, d)
    inside = (s < short)[:, None] & (at < long)[None, :]
    slot = tl.load(slots_ptr + d, mask=inside, other=-1)
    where = (as_offset(split, LONG_RESULT) * diagonals + slot) * short + s[:, None]
    stored = total.to(result_ptr.dtype.element_ty)
    tl.store(result_ptr + where, stored, mask=inside & (slot >= 0))
