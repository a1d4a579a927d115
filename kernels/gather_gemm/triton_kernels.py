"""Gather-GEMM and scatter-GEMM in Triton: three products, each with and without tl.dot.

Columns c = e * GROUP + s number the inputs of a row block in the order of the values
[R, E, GROUP, TILE]. The kernels with tl.dot want TILE >= 16; those without take any shape.
"""

# mypy: allow-untyped-defs

from __future__ import annotations

import triton
import triton.language as tl

from padst_fx.kernels.triton_epilogue import activate


@triton.jit
def store_result(
    total,
    bias_ptr,
    perm_ptr,
    result_ptr,
    m,
    f,
    in_result,
    tokens,
    features,
    WRITE_PERM: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    ACTIVATION: tl.constexpr,
):
    """Bias, activation and store of a tile: tokens ``m``, features ``f``."""
    if HAS_BIAS:
        total += tl.load(bias_ptr + f, mask=in_result, other=0.0).to(total.dtype)[None, :]
    total = activate(total, ACTIVATION)
    write = f
    if WRITE_PERM:
        write = tl.load(perm_ptr + f, mask=in_result, other=0)
    where = result_ptr + m.to(tl.int64)[:, None] * features + write[None, :]
    mask = (m < tokens)[:, None] & in_result[None, :]
    tl.store(where, total.to(result_ptr.dtype.element_ty), mask=mask)


@triton.jit
def block_of_columns(
    index_ptr,
    r,
    step,
    entries,
    per_window,
    window,
    GROUP: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Step number ``step`` through the columns of row block r: (c, where it reads, mask).

    A step stays within one entry when GROUP >= 16, so that its reads are adjacent.
    """
    if GROUP >= 16:
        steps: tl.constexpr = (GROUP + BLOCK_C - 1) // BLOCK_C
        e = step // steps
        s = step % steps * BLOCK_C + tl.arange(0, BLOCK_C)
        slot = tl.load(index_ptr + r * entries + e).to(tl.int32)
        first = e // per_window * window + slot * GROUP
        return e * GROUP + s, first + s, s < GROUP
    else:
        c = step * BLOCK_C + tl.arange(0, BLOCK_C)
        e = c // GROUP
        mask = e < entries
        slot = tl.load(index_ptr + r * entries + e, mask=mask, other=0).to(tl.int32)
        return c, e // per_window * window + slot * GROUP + c % GROUP, mask


@triton.jit
def gather_dot_kernel(
    source_ptr,  # [M, features]
    values_ptr,  # [R, E, GROUP, TILE]
    index_ptr,  # [R, E]
    perm_ptr,
    bias_ptr,
    tokens,
    entries,
    per_window,
    window,
    result_features,
    source_stride_m,
    source_stride_f,
    result_ptr,  # [M, R * TILE], contiguous
    GROUP: tl.constexpr,
    TILE: tl.constexpr,
    READ_PERM: tl.constexpr,
    WRITE_PERM: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    ACTIVATION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """BLOCK_V outputs of one row block for BLOCK_M tokens."""
    tiles: tl.constexpr = (TILE + BLOCK_V - 1) // BLOCK_V
    r = tl.program_id(0) // tiles
    v = tl.program_id(0) % tiles * BLOCK_V + tl.arange(0, BLOCK_V)
    m = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    in_tokens = m < tokens
    rows = source_ptr + m.to(tl.int64) * source_stride_m
    values_ptr += r.to(tl.int64) * entries * GROUP * TILE
    if GROUP >= 16:
        steps = entries * ((GROUP + BLOCK_C - 1) // BLOCK_C)
    else:
        steps = tl.cdiv(entries * GROUP, BLOCK_C)
    total = tl.zeros((BLOCK_M, BLOCK_V), dtype=tl.float32)
    for step in range(steps):
        c, column, mask = block_of_columns(
            index_ptr, r, step, entries, per_window, window, GROUP, BLOCK_C
        )
        if READ_PERM:
            column = tl.load(perm_ptr + column, mask=mask, other=0)
        where = rows[:, None] + column.to(tl.int64)[None, :] * source_stride_f
        left = tl.load(where, mask=in_tokens[:, None] & mask[None, :], other=0.0)
        weights = values_ptr + c[:, None] * TILE + v[None, :]
        right = tl.load(weights, mask=mask[:, None] & (v < TILE)[None, :], other=0.0)
        total = tl.dot(left, right.to(left.dtype), total, input_precision="ieee")
    store_result(
        total,
        bias_ptr,
        perm_ptr,
        result_ptr,
        m,
        r * TILE + v,
        v < TILE,
        tokens,
        result_features,
        WRITE_PERM,
        HAS_BIAS,
        ACTIVATION,
    )


@triton.jit
def gather_sum_kernel(
    source_ptr,  # [M, features]
    values_ptr,  # [R, E, GROUP, TILE]
    index_ptr,  # [R, E]
    perm_ptr,
    bias_ptr,
    tokens,
    entries,
    per_window,
    window,
    result_features,
    source_stride_m,
    source_stride_f,
    result_ptr,  # [M, R * TILE], contiguous
    GROUP: tl.constexpr,
    TILE: tl.constexpr,
    READ_PERM: tl.constexpr,
    WRITE_PERM: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    ACTIVATION: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """BLOCK_O outputs for BLOCK_M tokens, without tl.dot: every output has its own columns."""
    accumulate: tl.constexpr = tl.float64 if WIDE else tl.float32
    o = tl.program_id(0) * BLOCK_O + tl.arange(0, BLOCK_O)
    m = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    r = (o // TILE).to(tl.int64)
    in_tokens = m < tokens
    rows = source_ptr + m.to(tl.int64) * source_stride_m
    weights = values_ptr + r * entries * (GROUP * TILE) + o % TILE
    total = tl.zeros((BLOCK_M, BLOCK_O), dtype=accumulate)
    for start in range(0, entries * GROUP, BLOCK_C):
        c = start + tl.arange(0, BLOCK_C)
        e = c // GROUP
        mask = (o < result_features)[:, None] & (e < entries)[None, :]
        slot = tl.load(index_ptr + r[:, None] * entries + e[None, :], mask=mask, other=0)
        column = (e // per_window * window + c % GROUP)[None, :] + slot.to(tl.int32) * GROUP
        if READ_PERM:
            column = tl.load(perm_ptr + column, mask=mask, other=0)
        where = rows[:, None, None] + column.to(tl.int64)[None, :, :] * source_stride_f
        left = tl.load(where, mask=in_tokens[:, None, None] & mask[None, :, :], other=0.0)
        right = tl.load(weights[:, None] + c[None, :] * TILE, mask=mask, other=0.0)
        total += tl.sum(left.to(accumulate) * right.to(accumulate)[None, :, :], axis=2)
    store_result(
        total,
        bias_ptr,
        perm_ptr,
        result_ptr,
        m,
        o,
        o < result_features,
        tokens,
        result_features,
        WRITE_PERM,
        HAS_BIAS,
        ACTIVATION,
    )


@triton.jit
def scatter_dot_kernel(
    source_ptr,  # [M, R * TILE]
    values_ptr,  # [R, E, GROUP, TILE]
    order_ptr,  # [R * E]: entries sorted by the block of GROUP outputs they add to
    starts_ptr,  # [features / GROUP + 1]: where each block's entries start in the order
    perm_ptr,
    bias_ptr,
    tokens,
    entries,
    result_features,
    source_stride_m,
    source_stride_f,
    result_ptr,  # [M, features], contiguous
    GROUP: tl.constexpr,
    TILE: tl.constexpr,
    READ_PERM: tl.constexpr,
    WRITE_PERM: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    ACTIVATION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    """BLOCK_G outputs of one block of GROUP for BLOCK_M tokens: all entries that add to it."""
    tiles: tl.constexpr = (GROUP + BLOCK_G - 1) // BLOCK_G
    steps: tl.constexpr = (TILE + BLOCK_V - 1) // BLOCK_V
    block = tl.program_id(0) // tiles
    s = tl.program_id(0) % tiles * BLOCK_G + tl.arange(0, BLOCK_G)
    m = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    in_tokens = m < tokens
    rows = source_ptr + m.to(tl.int64) * source_stride_m
    first = tl.load(starts_ptr + block)
    count = tl.load(starts_ptr + block + 1) - first
    total = tl.zeros((BLOCK_M, BLOCK_G), dtype=tl.float32)
    for step in range(count * steps):
        v = step % steps * BLOCK_V + tl.arange(0, BLOCK_V)
        entry = tl.load(order_ptr + first + step // steps)
        column = (entry // entries).to(tl.int32) * TILE + v
        if READ_PERM:
            column = tl.load(perm_ptr + column, mask=v < TILE, other=0)
        where = rows[:, None] + column.to(tl.int64)[None, :] * source_stride_f
        left = tl.load(where, mask=in_tokens[:, None] & (v < TILE)[None, :], other=0.0)
        weights = values_ptr + entry.to(tl.int64) * (GROUP * TILE) + s[None, :] * TILE + v[:, None]
        right = tl.load(weights, mask=(v < TILE)[:, None] & (s < GROUP)[None, :], other=0.0)
        total = tl.dot(left, right.to(left.dtype), total, input_precision="ieee")
    store_result(
        total,
        bias_ptr,
        perm_ptr,
        result_ptr,
        m,
        block * GROUP + s,
        s < GROUP,
        tokens,
        result_features,
        WRITE_PERM,
        HAS_BIAS,
        ACTIVATION,
    )


@triton.jit
def scatter_sum_kernel(
    source_ptr,  # [M, R * TILE]
    values_ptr,  # [R, E, GROUP, TILE]
    order_ptr,  # [R * E]: entries sorted by the block of GROUP outputs they add to
    starts_ptr,  # [features / GROUP + 1]: where each block's entries start in the order
    perm_ptr,
    bias_ptr,
    tokens,
    entries,
    result_features,
    source_stride_m,
    source_stride_f,
    result_ptr,  # [M, features], contiguous
    GROUP: tl.constexpr,
    TILE: tl.constexpr,
    READ_PERM: tl.constexpr,
    WRITE_PERM: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    ACTIVATION: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """One output for BLOCK_M tokens, without tl.dot: all entries that add to it."""
    accumulate: tl.constexpr = tl.float64 if WIDE else tl.float32
    o = tl.program_id(0)
    m = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    in_tokens = m < tokens
    rows = source_ptr + m.to(tl.int64) * source_stride_m
    first = tl.load(starts_ptr + o // GROUP)
    count = tl.load(starts_ptr + o // GROUP + 1) - first
    weights = values_ptr + o % GROUP * TILE
    total = tl.zeros((BLOCK_M,), dtype=accumulate)
    for start in range(0, count * TILE, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        v = k % TILE
        mask = k < count * TILE
        entry = tl.load(order_ptr + first + k // TILE, mask=mask, other=0).to(tl.int64)
        column = entry // entries * TILE + v
        if READ_PERM:
            column = tl.load(perm_ptr + column, mask=mask, other=0).to(tl.int64)
        where = rows[:, None] + column[None, :] * source_stride_f
        left = tl.load(where, mask=in_tokens[:, None] & mask[None, :], other=0.0)
        right = tl.load(weights + entry * (GROUP * TILE) + v, mask=mask, other=0.0)
        total += tl.sum(left.to(accumulate) * right.to(accumulate)[None, :], axis=1)
    output = o + tl.arange(0, 1)
    store_result(
        total[:, None],
        bias_ptr,
        perm_ptr,
        result_ptr,
        m,
        output,
        output < result_features,
        tokens,
        result_features,
        WRITE_PERM,
        HAS_BIAS,
        ACTIVATION,
    )


@triton.jit
def outer_dot_kernel(
    gathered_ptr,  # [M, features]
    blocked_ptr,  # [M, R * TILE]
    index_ptr,  # [R, E]
    perm_ptr,
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
    GATHERED_PERM: tl.constexpr,
    BLOCKED_PERM: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """A [BLOCK_C, BLOCK_V] tile of one row block's values, over one split of the tokens."""
    tiles: tl.constexpr = (TILE + BLOCK_V - 1) // BLOCK_V
    if GROUP >= 16:
        steps = entries * ((GROUP + BLOCK_C - 1) // BLOCK_C)
    else:
        steps = tl.cdiv(entries * GROUP, BLOCK_C)
    v = tl.program_id(0) % tiles * BLOCK_V + tl.arange(0, BLOCK_V)
    step = tl.program_id(0) // tiles % steps
    r = tl.program_id(0) // tiles // steps
    split = tl.program_id(1)
    c, column, mask = block_of_columns(
        index_ptr, r, step, entries, per_window, window, GROUP, BLOCK_C
    )
    feature = r * TILE + v
    if GATHERED_PERM:
        column = tl.load(perm_ptr + column, mask=mask, other=0)
    if BLOCKED_PERM:
        feature = tl.load(perm_ptr + feature, mask=v < TILE, other=0)
    gathered_at = gathered_ptr + column.to(tl.int64)[:, None] * gathered_stride_f
    blocked_at = blocked_ptr + feature.to(tl.int64)[None, :] * blocked_stride_f
    end = min(tokens, (split + 1) * split_tokens)
    total = tl.zeros((BLOCK_C, BLOCK_V), dtype=tl.float32)
    for start in range(split * split_tokens, end, BLOCK_M):
        m = start + tl.arange(0, BLOCK_M)
        row = m.to(tl.int64)
        left_mask = mask[:, None] & (m < end)[None, :]
        left = tl.load(gathered_at + row[None, :] * gathered_stride_m, mask=left_mask, other=0.0)
        right_mask = (m < end)[:, None] & (v < TILE)[None, :]
        right = tl.load(blocked_at + row[:, None] * blocked_stride_m, mask=right_mask, other=0.0)
        total = tl.dot(left, right.to(left.dtype), total, input_precision="ieee")
    first = (split.to(tl.int64) * row_blocks + r) * entries * (GROUP * TILE)
    where = result_ptr + first + c[:, None] * TILE + v[None, :]
    stored = mask[:, None] & (v < TILE)[None, :]
    tl.store(where, total.to(result_ptr.dtype.element_ty), mask=stored)


@triton.jit
def outer_sum_kernel(
    gathered_ptr,  # [M, features]
    blocked_ptr,  # [M, R * TILE]
    index_ptr,  # [R, E]
    perm_ptr,
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
    GATHERED_PERM: tl.constexpr,
    BLOCKED_PERM: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """BLOCK_N adjacent values, over one split of the tokens, without tl.dot."""
    accumulate: tl.constexpr = tl.float64 if WIDE else tl.float32
    flat = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    split = tl.program_id(1)
    entry = flat // (GROUP * TILE)
    mask = entry < row_blocks * entries
    slot = tl.load(index_ptr + entry, mask=mask, other=0).to(tl.int64)
    e = entry % entries
    column = e // per_window * window + slot * GROUP + flat // TILE % GROUP
    feature = entry // entries * TILE + flat % TILE
    if GATHERED_PERM:
        column = tl.load(perm_ptr + column, mask=mask, other=0).to(tl.int64)
    if BLOCKED_PERM:
        feature = tl.load(perm_ptr + feature, mask=mask, other=0).to(tl.int64)
    gathered_at = gathered_ptr + column[None, :] * gathered_stride_f
    blocked_at = blocked_ptr + feature[None, :] * blocked_stride_f
    end = min(tokens, (split + 1) * split_tokens)
    total = tl.zeros((BLOCK_M, BLOCK_N), dtype=accumulate)
    for start in range(split * split_tokens, end, BLOCK_M):
        m = start + tl.arange(0, BLOCK_M)
        row = m.to(tl.int64)[:, None]
        both = (m < end)[:, None] & mask[None, :]
        left = tl.load(gathered_at + row * gathered_stride_m, mask=both, other=0.0)
        right = tl.load(blocked_at + row * blocked_stride_m, mask=both, other=0.0)
        total += left.to(accumulate) * right.to(accumulate)
    summed = tl.sum(total, axis=0).to(result_ptr.dtype.element_ty)
    first = split.to(tl.int64) * row_blocks * entries * (GROUP * TILE)
    tl.store(result_ptr + first + flat, summed, mask=mask)
