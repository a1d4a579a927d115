"""Triton kernels that copy activations into the layout another kernel reads fast."""

# mypy: allow-untyped-defs

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def tile_of_program(columns, BLOCK_M: tl.constexpr, BLOCK_F: tl.constexpr):
    """The tokens and features of a program; features vary faster, so neighbours share tokens."""
    tiles = tl.cdiv(columns, BLOCK_F)
    m = tl.program_id(0) // tiles * BLOCK_M + tl.arange(0, BLOCK_M)
    f = tl.program_id(0) % tiles * BLOCK_F + tl.arange(0, BLOCK_F)
    return m, f


@triton.jit
def as_offset(x, LONG: tl.constexpr):
    """``x`` in the integers that hold element offsets: 64 bits if LONG, else 32."""
    if LONG:
        x = x.to(tl.int64)
    return x


@triton.jit
def copy_kernel(
    source_ptr,  # [M, features]
    perm_ptr,
    tokens,
    rows,
    features,
    source_stride_m,
    source_stride_f,
    result_stride_m,
    result_stride_f,
    result_ptr,  # [rows, features]; tokens and beyond are zero
    HAS_PERM: tl.constexpr,
    LONG: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_F: tl.constexpr,
):
    """``source[m, perm[f]]`` at [m, f] of the result, whose strides say how it lies in memory."""
    m, f = tile_of_program(features, BLOCK_M, BLOCK_F)
    column = f
    if HAS_PERM:
        column = tl.load(perm_ptr + f, mask=f < features, other=0)
    row = as_offset(m, LONG)[:, None]
    where = source_ptr + row * source_stride_m + as_offset(column, LONG)[None, :] * source_stride_f
    inside = (m < tokens)[:, None] & (f < features)[None, :]
    x = tl.load(where, mask=inside, other=0.0)
    at = result_ptr + row * result_stride_m + as_offset(f, LONG)[None, :] * result_stride_f
    tl.store(at, x, mask=(m < rows)[:, None] & (f < features)[None, :])


@triton.jit
def inverse_kernel(perm_ptr, features, result_ptr, BLOCK: tl.constexpr):
    """``result[perm[f]] = f``."""
    f = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(result_ptr + tl.load(perm_ptr + f, mask=f < features, other=0), f, mask=f < features)


@triton.jit
def sum_parts_kernel(parts_ptr, splits, size, result_ptr, BLOCK: tl.constexpr):
    """``parts`` [splits, size] added up in the order of the splits: [size]."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), dtype=parts_ptr.dtype.element_ty)
    for split in range(splits):
        where = parts_ptr + tl.cast(split, tl.int64) * size + at
        total += tl.load(where, mask=at < size, other=0.0)
    tl.store(result_ptr + at, total.to(result_ptr.dtype.element_ty), mask=at < size)
