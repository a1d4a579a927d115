"""Tiles from the shapes alone: what a kernel runs with where nothing was measured.

The rules come from counting. With few tokens a kernel is bound by the bytes of the weights, so
programs are made narrow and deep until about two per multiprocessor keep enough bytes in flight.
With many tokens tiles grow until their operands are reused and a thread's sums fill its registers.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from padst_fx.kernels.integers import ceil_div, power_of_two
from padst_fx.kernels.tiles.problem import Problem, Tiles

PROGRAMS = 256
SMALLEST_DOT = 16
LANES_ABOVE = 8
SUMS = 4096
SIZES = {
    "shift_product": ("result_features", "diagonals"),
    "shift_weight_grad": ("short", "diagonals"),
    "shift_weight_grad_dot": ("short", "long"),
    "gather_dot": ("row_blocks", "group", "tile", "columns"),
    "gather_sum": ("result_features", "columns"),
    "scatter_dot": ("blocks", "tile", "group", "columns"),
    "scatter_sum": ("result_features", "columns"),
    "outer_dot": ("row_blocks", "group", "tile", "columns"),
    "outer_sum": ("values",),
    "outer_windows": ("result_features", "window"),
    "two_four": ("out_features", "in_features"),
    "dense_forward": ("out_features", "in_features", "weights", "width"),
    "dense_input_grad": ("out_features", "in_features", "weights", "width"),
    "dense_weight_grad": ("out_features", "in_features", "weights", "width"),
}
# Measured on an H100: the time of an operation in a product's own kernel, of one in cuBLAS; the
# tokens in whose time cuBLAS reads a dense matrix that was just written; and how many multiply-adds
# take cuSPARSELt as long as torch takes to call it.
SLOWEST, SLOWNESS_TIMES_WIDTH = 80, 220
TOKENS_OF_A_MATRIX = 700
PRODUCTS_OF_A_CALL = 4e11


def edge(size: int, largest: int) -> int:
    """A power of two that covers ``size``, between the smallest that tl.dot takes and a largest."""
    return max(SMALLEST_DOT, min(power_of_two(size), largest))


def _sums(problem: Problem) -> int:
    """Partial sums that a program of four warps holds in registers."""
    return SUMS // 2 if problem.dtype == torch.float64 else SUMS


def lanes(problem: Problem) -> Tiles:
    """Kernels without tl.dot: BLOCK_F results, BLOCK_K terms of each, BLOCK_M tokens."""
    features, terms = problem.sizes
    if problem.tokens > 64:
        wide = 32 if problem.dtype == torch.float64 else 64
        return {"BLOCK_M": wide, "BLOCK_F": 32, "BLOCK_K": 1, "UNROLL": 4, "num_warps": 4}
    tokens = power_of_two(problem.tokens)
    many = features >= 32 * PROGRAMS
    if problem.tokens <= LANES_ABOVE:
        sums = _sums(problem) // (2 if many else 1)
        deep = min(power_of_two(terms), max(1, sums // (16 * tokens)))
        return {"BLOCK_M": tokens, "BLOCK_F": 16, "BLOCK_K": deep, "UNROLL": 1, "num_warps": 4}
    width, tokens = 16 if many else 8, max(16, tokens)
    deep = min(power_of_two(terms), max(1, _sums(problem) // (2 * width * tokens)))
    return {"BLOCK_M": tokens, "BLOCK_F": width, "BLOCK_K": deep, "UNROLL": 4, "num_warps": 8}


def shift_weight_grad(problem: Problem) -> Tiles:
    """A few diagonals share what they read of the shorter side."""
    _, diagonals = problem.sizes
    if problem.tokens <= LANES_ABOVE:
        tokens = power_of_two(problem.tokens)
        several = min(power_of_two(diagonals), max(1, _sums(problem) // (64 * tokens)))
        return {"BLOCK_M": tokens, "BLOCK_F": 64, "BLOCK_K": min(8, several), "num_warps": 4}
    tokens = edge(problem.tokens, 32 if problem.dtype == torch.float64 else 64)
    return {"BLOCK_M": tokens, "BLOCK_F": 16, "BLOCK_K": 4, "num_warps": 4}


def shift_weight_grad_dot(problem: Problem) -> Tiles:
    short, long = (edge(size, 128) for size in problem.sizes)
    warps = 8 if short * long > 64 * 128 else 4
    return {"BLOCK_S": short, "BLOCK_L": long, "BLOCK_M": 64, "num_warps": warps, "num_stages": 3}


def _depth(group: int, columns: int, largest: int) -> int:
    """Columns of a step: several narrow entries, or a part of a wide one."""
    if group < SMALLEST_DOT or (group < largest and largest % group == 0):
        return edge(columns, largest)
    return edge(group, largest)


def dot(problem: Problem) -> Tiles:
    """Products with tl.dot: BLOCK_V results of a block, BLOCK_C terms of each, BLOCK_M tokens.

    The compiler shares stages between the index and what is read through it: twice as many as
    the operands are buffered.
    """
    blocks, depth, width, columns = problem.sizes
    if problem.dtype == torch.float32:
        tiles = edge(problem.tokens, 64), edge(width, 64), _depth(depth, columns, 16)
        return _product_tile(*tiles, warps=4, stages=5)
    deep = _depth(depth, columns, 64)
    if problem.tokens <= 64:
        wide = edge(width, 64)
        while wide > SMALLEST_DOT and blocks * ceil_div(width, wide) < PROGRAMS:
            wide //= 2
        tokens = edge(problem.tokens, 64)
        warps = max(1, min(4, tokens * wide // 256))
        return _product_tile(tokens, wide, deep, warps=warps, stages=7)
    wide = edge(width, 128)
    tokens = 128
    while tokens > 64 and blocks * ceil_div(width, wide) * problem.tokens < PROGRAMS * tokens:
        tokens //= 2
    return _product_tile(tokens, wide, deep, warps=8 if tokens * wide > 8192 else 4, stages=5)


def _product_tile(tokens: int, width: int, depth: int, *, warps: int, stages: int) -> Tiles:
    blocks = {"BLOCK_M": tokens, "BLOCK_V": width, "BLOCK_C": depth}
    return {**blocks, "num_warps": warps, "num_stages": stages}


def outer_dot(problem: Problem) -> Tiles:
    """A [BLOCK_C, BLOCK_V] tile of the weight gradient, BLOCK_M tokens at a time."""
    _, group, tile, columns = problem.sizes
    if problem.dtype == torch.float32:
        return _product_tile(16, edge(tile, 64), _depth(group, columns, 32), warps=4, stages=3)
    deep, wide = _depth(group, columns, 128 if group >= 128 else 64), edge(tile, 128)
    return _product_tile(64, wide, deep, warps=8 if deep * wide > 8192 else 4, stages=3)


def outer_sum(problem: Problem) -> Tiles:
    """BLOCK_N values, BLOCK_M tokens at a time."""
    few = problem.tokens <= LANES_ABOVE
    tokens = power_of_two(problem.tokens) if few else edge(problem.tokens, 64)
    return {"BLOCK_M": tokens, "BLOCK_N": min(512, _sums(problem) // tokens), "num_warps": 4}


def outer_windows(problem: Problem) -> Tiles:
    """Whole windows, so many that they make up 64 columns or more."""
    features, window = problem.sizes
    slots = power_of_two(window)
    several = max(1, 64 // slots)
    wide = edge(features, 128 if slots * several <= 64 else 64)
    tile = {"BLOCK_V": wide, "WINDOWS": several, "SLOTS": slots, "BLOCK_M": 64}
    return {**tile, "num_warps": 8, "num_stages": 2}


def two_four(problem: Problem) -> Tiles:
    """Whether 2:4 weights go to torch's semi-structured matmul: where it outlasts its own call."""
    out, inputs = problem.sizes
    large = problem.tokens * out * inputs >= PRODUCTS_OF_A_CALL
    return {"LIBRARY": int(problem.dtype_class == "half" and large)}


def through_dense(problem: Problem) -> Tiles:
    """Whether a product writes its weight out as a dense matrix and leaves the rest to cuBLAS."""
    out, inputs, weights, width = problem.sizes
    own = weights / (out * inputs) * min(SLOWEST, SLOWNESS_TIMES_WIDTH / width)
    dense = 1 + TOKENS_OF_A_MATRIX / max(1, problem.tokens)
    return {"DENSE": int(problem.dtype_class == "half" and own > dense)}


RULES: dict[str, Callable[[Problem], Tiles]] = {
    "shift_product": lanes,
    "shift_weight_grad": shift_weight_grad,
    "shift_weight_grad_dot": shift_weight_grad_dot,
    "gather_dot": dot,
    "gather_sum": lanes,
    "scatter_dot": dot,
    "scatter_sum": lanes,
    "outer_dot": outer_dot,
    "outer_sum": outer_sum,
    "outer_windows": outer_windows,
    "two_four": two_four,
    "dense_forward": through_dense,
    "dense_input_grad": through_dense,
    "dense_weight_grad": through_dense,
}


def calculated(problem: Problem) -> Tiles:
    """The tile of a problem by the rules above."""
    return RULES[problem.kernel](problem)
