"""Gather-GEMM and scatter-GEMM in Triton: the products, with and without tl.dot.

Columns c = e * GROUP + s number the inputs of a row block in the order of the values
[R, E, GROUP, TILE]. The kernels with tl.dot want TILE >= 16; those without take any shape and
read fastest where adjacent tokens are adjacent in memory.
"""

# mypy: allow-untyped-defs

from __future__ import annotations

import triton
import triton.language as tl

from padst_fx.kernels.triton_epilogue import store_result
from padst_fx.kernels.triton_layout_kernels import as_offset, tile_of_program


@triton.constexpr_function
def within_entries(GROUP, BLOCK_C):
    """Whether a step takes columns of one entry, which is then looked up once for all of them.

    So it is for groups of 16 and more, unless several fill a step evenly.
    """
    return GROUP >= 16 and (BLOCK_C <= GROUP or BLOCK_C % GROUP != 0)


@triton.jit
def column_steps(entries, GROUP: tl.constexpr, BLOCK_C: tl.constexpr):
    """How many steps of BLOCK_C columns a row block has."""
    if within_entries(GROUP, BLOCK_C):
        steps = entries * ((GROUP + BLOCK_C - 1) // BLOCK_C)
    else:
        steps = tl.cdiv(entries * GROUP, BLOCK_C)
    return steps


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
    """Step number ``step`` through the columns of row block r: (c, where it reads, mask)."""
    if within_entries(GROUP, BLOCK_C):
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
    source_ptr,  # [readable, features]
    values_ptr,  # [R, E, GROUP, TILE]
    index_ptr,  # [R, E]
    perm_ptr,
    bias_ptr,
    tokens,
    readable,
    row_blocks,
    entries,
    per_window,
    window,
    source_stride_m,
    source_stride_f,
    result_ptr,  # [M, R * TILE], contiguous
    GROUP: tl.constexpr,
    TILE: tl.constexpr,
    READ_PERM: tl.constexpr,
    WRITE_PERM: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    ACTIVATION: tl.constexpr,
    PRECISION: tl.constexpr,
    LONG: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """BLOCK_V outputs of one row block for BLOCK_M tokens."""
    tiles: tl.constexpr = (TILE + BLOCK_V - 1) // BLOCK_V
    part = tl.program_id(0) % (row_blocks * tiles)
    m = tl.program_id(0) // (row_blocks * tiles) * BLOCK_M + tl.arange(0, BLOCK_M)
    r = part // tiles
    v = part % tiles * BLOCK_V + tl.arange(0, BLOCK_V)
    rows = source_ptr + as_offset(m, LONG) * source_stride_m
    values_ptr += as_offset(r, LONG) * entries * (GROUP * TILE)
    total = tl.zeros((BLOCK_M, BLOCK_V), dtype=tl.float32)
    for step in range(column_steps(entries, GROUP, BLOCK_C)):
        c, column, mask = block_of_columns(
            index_ptr, r, step, entries, per_window, window, GROUP, BLOCK_C
        )
        if READ_PERM:
            column = tl.load(perm_ptr + column, mask=mask, other=0)
        where = rows[:, None] + as_offset(column, LONG)[None, :] * source_stride_f
        left = tl.load(where, mask=(m < readable)[:, None] & mask[None, :], other=0.0)
        weights = values_ptr + c[:, None] * TILE + v[None, :]
        right = tl.load(weights, mask=mask[:, None] & (v < TILE)[None, :], other=0.0)
        total = tl.dot(left, right, total, input_precision=PRECISION)
    store_result(
        total,
        bias_ptr,
        perm_ptr,
        result_ptr,
        m,
        r * TILE + v,
        v < TILE,
        tokens,
        row_blocks * TILE,
        WRITE_PERM,
        HAS_BIAS,
        ACTIVATION,
        LONG,
    )


@triton.jit
def gather_sum_kernel(
    source_ptr,  # [readable, features]
    values_ptr,  # [R, E, GROUP, TILE]
    index_ptr,  # [R, E]
    perm_ptr,
    bias_ptr,
    tokens,
    readable,
    row_blocks,
    entries,
    per_window,
    window,
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
    LONG: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_F: tl.constexpr,
    BLOCK_K: tl.constexpr,
    UNROLL: tl.constexpr,
):
    """BLOCK_F outputs for BLOCK_M tokens, without tl.dot: every output has its own columns."""
    accumulate: tl.constexpr = tl.float64 if WIDE else tl.float32
    features = row_blocks * TILE
    m, o = tile_of_program(features, BLOCK_M, BLOCK_F)
    r = as_offset(o // TILE, LONG)
    rows = source_ptr + as_offset(m, LONG) * source_stride_m
    weights = values_ptr + r * entries * (GROUP * TILE) + o % TILE
    total = tl.zeros((BLOCK_F, BLOCK_K, BLOCK_M), dtype=accumulate)
    for start in tl.range(0, entries * GROUP, BLOCK_K, loop_unroll_factor=UNROLL):
        c = start + tl.arange(0, BLOCK_K)
        e = c // GROUP
        mask = (o < features)[:, None] & (e < entries)[None, :]
        slot = tl.load(index_ptr + r[:, None] * entries + e[None, :], mask=mask, other=0)
        column = (e // per_window * window + c % GROUP)[None, :] + slot.to(tl.int32) * GROUP
        if READ_PERM:
            column = tl.load(perm_ptr + column, mask=mask, other=0)
        where = rows[None, None, :] + as_offset(column, LONG)[:, :, None] * source_stride_f
        left = tl.load(where, mask=mask[:, :, None] & (m < readable)[None, None, :], other=0.0)
        right = tl.load(weights[:, None] + c[None, :] * TILE, mask=mask, other=0.0)
        total += left.to(accumulate) * right.to(accumulate)[:, :, None]
    store_result(
        tl.trans(tl.sum(total, axis=1)),
        bias_ptr,
        perm_ptr,
        result_ptr,
        m,
        o,
        o < features,
        tokens,
        features,
        WRITE_PERM,
        HAS_BIAS,
        ACTIVATION,
        LONG,
    )


@triton.jit
def entry_lists_kernel(
    index_ptr,  # [R, E]
    row_blocks,
    entries,
    per_window,
    window_blocks,
    blocks,
    order_ptr,  # [R * E]
    starts_ptr,  # [blocks + 1]
    BLOCK_B: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """The entries that cover each of BLOCK_B blocks of one window, in the order of row blocks.

    The window's entries are counted first, which gives every block's start, then written.
    """
    parts = tl.cdiv(window_blocks, BLOCK_B)
    w = tl.program_id(0) // parts
    slot = tl.program_id(0) % parts * BLOCK_B + tl.arange(0, BLOCK_B)
    block = w * window_blocks + slot
    inside = (slot < window_blocks) & (block < blocks)
    present = row_blocks * per_window
    below = tl.zeros((BLOCK_B,), dtype=tl.int32)
    for start in range(0, present, BLOCK_N):
        i = start + tl.arange(0, BLOCK_N)
        entry = i // per_window * entries + w * per_window + i % per_window
        found = tl.load(index_ptr + entry, mask=i < present, other=0).to(tl.int32)
        smaller = (found[None, :] < slot[:, None]) & (i < present)[None, :]
        below += tl.sum(smaller.to(tl.int32), axis=1)
    at = w * present + below
    tl.store(starts_ptr + block, at, mask=inside)
    tl.store(starts_ptr + block + 1, row_blocks * entries, mask=inside & (block == blocks - 1))
    for start in range(0, present, BLOCK_N):
        i = start + tl.arange(0, BLOCK_N)
        entry = i // per_window * entries + w * per_window + i % per_window
        found = tl.load(index_ptr + entry, mask=i < present, other=0).to(tl.int32)
        same = (found[None, :] == slot[:, None]) & (i < present)[None, :] & inside[:, None]
        count = tl.cumsum(same.to(tl.int32), axis=1)
        written = tl.broadcast_to(entry[None, :], (BLOCK_B, BLOCK_N))
        tl.store(order_ptr + at[:, None] + count - 1, written, mask=same)
        at += tl.sum(same.to(tl.int32), axis=1)


@triton.jit
def cyclic_entries(
    index_ptr, block, row_blocks, entries, blocks, ENTRIES: tl.constexpr
):
    """Which entries of a cyclic index add to ``block``: (first, how many from it, how many at all).

    Entry e of row block r adds to block ``(index[0, e] + r) mod blocks``. The offsets ascend, so
    those with a row block for this block stand together, or at the start and at the end.
    """
    e = tl.arange(0, ENTRIES)
    offset = tl.load(index_ptr + e, mask=e < entries, other=blocks)
    first = tl.sum((offset <= block - row_blocks).to(tl.int32), axis=0)
    straight = tl.sum((offset <= block).to(tl.int32), axis=0) - first
    wrapped = (offset > block - row_blocks + blocks) & (e < entries)
    return first, straight, straight + tl.sum(wrapped.to(tl.int32), axis=0)


@triton.jit
def entry_at(
    order_ptr, i, mask, first, straight, count, block, blocks, entries, CYCLIC: tl.constexpr
):
    """Number ``i`` of the entries that add to ``block``: calculated, or read from the list."""
    if CYCLIC:
        e = tl.where(i < straight, first + i, entries - count + i)
        r = block - tl.load(order_ptr + e, mask=mask, other=0)
        return tl.where(r < 0, r + blocks, r) * entries + e
    else:
        return tl.load(order_ptr + first + i, mask=mask, other=0)


@triton.jit
def scatter_dot_kernel(
    source_ptr,  # [readable, R * TILE]
    values_ptr,  # [R, E, GROUP, TILE]
    order_ptr,  # [R * E]: entries sorted by the block they add to; the index itself if CYCLIC
    starts_ptr,  # [blocks + 1]: where each block's entries start in the order; not read if CYCLIC
    perm_ptr,
    bias_ptr,
    tokens,
    readable,
    row_blocks,
    entries,
    blocks,
    source_stride_m,
    source_stride_f,
    result_ptr,  # [M, blocks * GROUP], contiguous
    GROUP: tl.constexpr,
    TILE: tl.constexpr,
    CYCLIC: tl.constexpr,
    ENTRIES: tl.constexpr,
    READ_PERM: tl.constexpr,
    WRITE_PERM: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    ACTIVATION: tl.constexpr,
    PRECISION: tl.constexpr,
    LONG: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """BLOCK_V outputs of one block for BLOCK_M tokens: all entries that add to it."""
    tiles: tl.constexpr = (GROUP + BLOCK_V - 1) // BLOCK_V
    part = tl.program_id(0) % (blocks * tiles)
    m = tl.program_id(0) // (blocks * tiles) * BLOCK_M + tl.arange(0, BLOCK_M)
    block = part // tiles
    s = part % tiles * BLOCK_V + tl.arange(0, BLOCK_V)
    rows = source_ptr + as_offset(m, LONG) * source_stride_m
    if CYCLIC:
        first, straight, count = cyclic_entries(
            order_ptr, block, row_blocks, entries, blocks, ENTRIES
        )
    else:
        first = tl.load(starts_ptr + block)
        count = tl.load(starts_ptr + block + 1) - first
        straight = count
    total = tl.zeros((BLOCK_M, BLOCK_V), dtype=tl.float32)
    for step in range(column_steps(count, TILE, BLOCK_C)):
        if within_entries(TILE, BLOCK_C):
            steps: tl.constexpr = (TILE + BLOCK_C - 1) // BLOCK_C
            i, present = step // steps, True
            v = step % steps * BLOCK_C + tl.arange(0, BLOCK_C)
            mask = v < TILE
        else:
            c = step * BLOCK_C + tl.arange(0, BLOCK_C)
            i, v = c // TILE, c % TILE
            present = i < count
            mask = present
        entry = entry_at(
            order_ptr, i, present, first, straight, count, block, blocks, entries, CYCLIC
        )
        column = entry // entries * TILE + v
        if READ_PERM:
            column = tl.load(perm_ptr + column, mask=mask, other=0)
        where = rows[:, None] + as_offset(column, LONG)[None, :] * source_stride_f
        left = tl.load(where, mask=(m < readable)[:, None] & mask[None, :], other=0.0)
        weights = values_ptr + (as_offset(entry, LONG) * (GROUP * TILE) + v)
        weights = weights[:, None] + s[None, :] * TILE
        right = tl.load(weights, mask=mask[:, None] & (s < GROUP)[None, :], other=0.0)
        total = tl.dot(left, right, total, input_precision=PRECISION)
    store_result(
        total,
        bias_ptr,
        perm_ptr,
        result_ptr,
        m,
        block * GROUP + s,
        s < GROUP,
        tokens,
        blocks * GROUP,
        WRITE_PERM,
        HAS_BIAS,
        ACTIVATION,
        LONG,
    )


@triton.jit
def scatter_sum_kernel(
    source_ptr,  # [readable, R * TILE]
    values_ptr,  # [R, E, GROUP, TILE]
    order_ptr,  # [R * E]: entries sorted by the block of GROUP outputs they add to
    starts_ptr,  # [blocks + 1]: where each block's entries start in the order
    perm_ptr,
    bias_ptr,
    tokens,
    readable,
    entries,
    blocks,
    source_stride_m,
    source_stride_f,
    result_ptr,  # [M, blocks * GROUP], contiguous
    GROUP: tl.constexpr,
    TILE: tl.constexpr,
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
    """BLOCK_F outputs for BLOCK_M tokens, without tl.dot: all entries that add to each."""
    accumulate: tl.constexpr = tl.float64 if WIDE else tl.float32
    features = blocks * GROUP
    m, o = tile_of_program(features, BLOCK_M, BLOCK_F)
    in_result = o < features
    rows = source_ptr + as_offset(m, LONG) * source_stride_m
    first = tl.load(starts_ptr + o // GROUP, mask=in_result, other=0)
    terms = (tl.load(starts_ptr + o // GROUP + 1, mask=in_result, other=0) - first) * TILE
    weights = values_ptr + o % GROUP * TILE
    total = tl.zeros((BLOCK_F, BLOCK_K, BLOCK_M), dtype=accumulate)
    for start in tl.range(0, tl.max(terms, axis=0), BLOCK_K, loop_unroll_factor=UNROLL):
        k = start + tl.arange(0, BLOCK_K)
        v = k % TILE
        mask = k[None, :] < terms[:, None]
        entry = tl.load(order_ptr + first[:, None] + (k // TILE)[None, :], mask=mask, other=0)
        column = entry // entries * TILE + v[None, :]
        if READ_PERM:
            column = tl.load(perm_ptr + column, mask=mask, other=0)
        where = rows[None, None, :] + as_offset(column, LONG)[:, :, None] * source_stride_f
        left = tl.load(where, mask=mask[:, :, None] & (m < readable)[None, None, :], other=0.0)
        at = as_offset(entry, LONG) * (GROUP * TILE) + v[None, :]
        right = tl.load(weights[:, None] + at, mask=mask, other=0.0)
        total += left.to(accumulate) * right.to(accumulate)[:, :, None]
    store_result(
        tl.trans(tl.sum(total, axis=1)),
        bias_ptr,
        perm_ptr,
        result_ptr,
        m,
        o,
        in_result,
        tokens,
        features,
        WRITE_PERM,
        HAS_BIAS,
        ACTIVATION,
        LONG,
    )
