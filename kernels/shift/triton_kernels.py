"""Width-1 wrapped diagonals in Triton."""

# mypy: allow-untyped-defs

from __future__ import annotations

import triton
import triton.language as tl

from padst_fx.kernels.triton_epilogue import activate


@triton.jit
def shift_product_kernel(
    source_ptr,  # [M, source_features]
    values_ptr,  # [K, min(source_features, result_features)]
    offsets_ptr,  # [K]
    perm_ptr,
    bias_ptr,
    tokens,
    source_features,
    result_features,
    diagonals,
    source_stride_m,
    source_stride_f,
    result_ptr,  # [M, result_features], contiguous
    SPREAD: tl.constexpr,
    READ_PERM: tl.constexpr,
    WRITE_PERM: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    ACTIVATION: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_F: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """One [BLOCK_M, BLOCK_F] tile of the result, BLOCK_K diagonals at a time.

    SPREAD: the result is the longer side, feature f takes source ``f - offset`` where there is
    one. Otherwise the result is the shorter side and feature f takes source ``f + offset``.
    """
    accumulate: tl.constexpr = tl.float64 if WIDE else tl.float32
    m = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    first = tl.program_id(0) * BLOCK_F
    f = first + tl.arange(0, BLOCK_F)
    in_tokens = m < tokens
    in_result = f < result_features
    rows = source_ptr + m.to(tl.int64) * source_stride_m
    short = min(source_features, result_features)
    total = tl.zeros((BLOCK_M, BLOCK_F), dtype=accumulate)
    for start in range(0, diagonals, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        in_diagonals = k < diagonals
        offset = tl.load(offsets_ptr + k, mask=in_diagonals, other=0)
        mask = in_diagonals[:, None] & in_result[None, :]
        if SPREAD:
            column = f[None, :] - offset[:, None]
            column = tl.where(column < 0, column + result_features, column)
            mask = mask & (column < source_features)
            at = column
        else:
            column = f[None, :] + offset[:, None]
            column = tl.where(column >= source_features, column - source_features, column)
            at = tl.broadcast_to(f[None, :], (BLOCK_K, BLOCK_F))
        weight = tl.load(values_ptr + k.to(tl.int64)[:, None] * short + at, mask=mask, other=0.0)
        if READ_PERM:
            column = tl.load(perm_ptr + column, mask=mask, other=0)
        where = rows[None, :, None] + column.to(tl.int64)[:, None, :] * source_stride_f
        read = tl.load(where, mask=mask[:, None, :] & in_tokens[None, :, None], other=0.0)
        total += tl.sum(read.to(accumulate) * weight.to(accumulate)[:, None, :], axis=0)
    if HAS_BIAS:
        total += tl.load(bias_ptr + f, mask=in_result, other=0.0).to(accumulate)[None, :]
    total = activate(total, ACTIVATION)
    write = f
    if WRITE_PERM:
        write = tl.load(perm_ptr + f, mask=in_result, other=0)
    where = result_ptr + m.to(tl.int64)[:, None] * result_features + write[None, :]
    tl.store(
        where, total.to(result_ptr.dtype.element_ty), mask=in_tokens[:, None] & in_result[None, :]
    )


@triton.jit
def shift_weight_grad_kernel(
    still_ptr,  # [M, short]
    moving_ptr,  # [M, long]
    offsets_ptr,  # [K]
    perm_ptr,
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
    STILL_PERM: tl.constexpr,
    MOVING_PERM: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_F: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """BLOCK_F entries of BLOCK_K diagonals, summed over one split of the tokens."""
    accumulate: tl.constexpr = tl.float64 if WIDE else tl.float32
    tiles = tl.cdiv(short, BLOCK_F)
    k = tl.program_id(0) // tiles * BLOCK_K + tl.arange(0, BLOCK_K)
    f = tl.program_id(0) % tiles * BLOCK_F + tl.arange(0, BLOCK_F)
    split = tl.program_id(1)
    mask = (k < diagonals)[:, None] & (f < short)[None, :]
    offset = tl.load(offsets_ptr + k, mask=k < diagonals, other=0)
    moved = f[None, :] + offset[:, None]
    moved = tl.where(moved >= long, moved - long, moved)
    still = f
    if MOVING_PERM:
        moved = tl.load(perm_ptr + moved, mask=mask, other=0)
    if STILL_PERM:
        still = tl.load(perm_ptr + f, mask=f < short, other=0)
    still_at = still_ptr + still.to(tl.int64)[None, :] * still_stride_f
    moving_at = moving_ptr + moved.to(tl.int64)[:, None, :] * moving_stride_f
    end = min(tokens, (split + 1) * split_tokens)
    total = tl.zeros((BLOCK_K, BLOCK_M, BLOCK_F), dtype=accumulate)
    for start in range(split * split_tokens, end, BLOCK_M):
        m = start + tl.arange(0, BLOCK_M)
        row = m.to(tl.int64)
        in_tokens = m < end
        still_mask = in_tokens[:, None] & (f < short)[None, :]
        left = tl.load(still_at + row[:, None] * still_stride_m, mask=still_mask, other=0.0)
        moving_mask = in_tokens[None, :, None] & mask[:, None, :]
        moving_rows = moving_at + row[None, :, None] * moving_stride_m
        right = tl.load(moving_rows, mask=moving_mask, other=0.0)
        total += left.to(accumulate)[None, :, :] * right.to(accumulate)
    where = (split.to(tl.int64) * diagonals + k)[:, None] * short + f[None, :]
    tl.store(result_ptr + where, tl.sum(total, axis=1).to(result_ptr.dtype.element_ty), mask=mask)
