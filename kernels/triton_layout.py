"""Copies of activations in the layout that a kernel reads fast, and sums of split results."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from padst_fx.kernels import triton_call
from padst_fx.kernels.integers import ceil_div
from padst_fx.kernels.tiles.calculated import LANES_ABOVE

PADDING = 16
FEW_TOKENS = 16
NARROW = 8
BLOCK = 1024

_kernels = triton_call.imported_late("padst_fx.kernels.triton_layout_kernels")


def _copy(source: Tensor, perm: Tensor | None, result: Tensor) -> Tensor:
    """``source[:, perm]`` written to ``result`` [rows, features]; rows past the tokens are zero."""
    tokens, features = source.shape
    rows = result.shape[0]
    triton_call.launch(
        _kernels().copy_kernel,
        ceil_div(rows, 32) * ceil_div(features, 64),
        source,
        source if perm is None else perm.contiguous(),
        tokens,
        rows,
        features,
        *source.stride(),
        *result.stride(),
        result,
        HAS_PERM=perm is not None,
        LONG=triton_call.needs_long(source, result),
        BLOCK_M=32,
        BLOCK_F=64,
        num_warps=4,
    )
    return result


class Arranged(NamedTuple):
    """A source as a kernel reads it, and what happens to the permutation."""

    source: Tensor
    reads_perm: bool
    writes_perm: bool
    undoes_perm: bool


def arranged(source: Tensor, perm: Tensor, writes_perm: bool, adjacent: int) -> Arranged:
    """How a product reads ``source`` [M, features], ``adjacent`` features at a time.

    With few tokens kernels read or write through the permutation themselves. With many, the source
    is copied once, so that tiles are read in whole rows, or with its tokens adjacent where fewer
    than ``NARROW`` adjacent features are taken; and the result is put back once.
    """
    tokens, has_perm = source.shape[0], perm.numel() > 0
    reads = has_perm and not writes_perm
    if adjacent >= NARROW:
        if reads and tokens > FEW_TOKENS:
            source, reads = permuted_rows(source, perm), False
    elif tokens > LANES_ABOVE:
        source, reads = token_lanes(source, perm if reads else None), False
    writes = has_perm and writes_perm
    return Arranged(source, reads, writes and tokens <= FEW_TOKENS, writes and tokens > FEW_TOKENS)


def token_lanes(source: Tensor, perm: Tensor | None) -> Tensor:
    """``source[:, perm]`` with adjacent tokens adjacent in memory: [ceil16(M), features].

    Whatever feature is read, the read is aligned and as wide as the device allows. Tokens are
    padded with zeros to a multiple of ``PADDING``.
    """
    rows = ceil_div(source.shape[0], PADDING) * PADDING
    lanes = torch.empty((source.shape[1], rows), dtype=source.dtype, device=source.device)
    return _copy(source, perm, lanes.t())


def permuted_rows(source: Tensor, perm: Tensor | None) -> Tensor:
    """``source[:, perm]``, or ``source`` itself without a permutation."""
    if perm is None:
        return source
    return _copy(source, perm, torch.empty(source.shape, dtype=source.dtype, device=source.device))


def permuted_lanes(source: Tensor, perm: Tensor | None) -> Tensor:
    """``source[:, perm]``, with adjacent tokens adjacent in memory if there are many."""
    if source.shape[0] <= LANES_ABOVE:
        return permuted_rows(source, perm)
    return token_lanes(source, perm)


def unpermuted(result: Tensor, perm: Tensor) -> Tensor:
    """The tensor ``y`` with ``y[:, perm] = result``."""
    inverse = torch.empty(perm.shape, dtype=perm.dtype, device=perm.device)
    programs = ceil_div(perm.numel(), BLOCK)
    arguments = (perm.contiguous(), perm.numel(), inverse)
    triton_call.launch(_kernels().inverse_kernel, programs, *arguments, BLOCK=BLOCK)
    return permuted_rows(result, inverse)


def sum_parts(parts: Tensor, dtype: torch.dtype) -> Tensor:
    """``parts`` [splits, ...] added up in order and rounded once to ``dtype``."""
    if parts.shape[0] == 1:
        return parts[0]
    result = torch.empty(parts.shape[1:], dtype=dtype, device=parts.device)
    size = result.numel()
    arguments = (parts, parts.shape[0], size, result)
    programs = ceil_div(size, BLOCK)
    triton_call.launch(_kernels().sum_parts_kernel, programs, *arguments, BLOCK=BLOCK)
    return result
