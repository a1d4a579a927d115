"""The maths of every kernel, on dense float64 matrices built entry by entry."""

from __future__ import annotations

import math

import torch
from torch import Tensor

ERROR_FACTOR = 4


def shift_matrix(values: Tensor, offsets: Tensor, out: int, inp: int) -> Tensor:
    matrix = torch.zeros(out, inp, dtype=torch.float64)
    for k, offset in enumerate(offsets.tolist()):
        for t in range(min(out, inp)):
            row, column = ((t + offset) % out, t) if out >= inp else (t, (t + offset) % inp)
            matrix[row, column] += values[k, t].double()
    return matrix


def gather_matrix(values: Tensor, index: Tensor, window: int, features: int) -> Tensor:
    row_blocks, entries, group, tile = values.shape
    per_window = entries // math.ceil(features / window)
    matrix = torch.zeros(row_blocks * tile, features, dtype=torch.float64)
    slots = index.tolist()
    for r in range(row_blocks):
        for e in range(entries):
            first = (e // per_window) * window + slots[r][e] * group
            for s in range(group):
                matrix[r * tile : (r + 1) * tile, first + s] += values[r, e, s].double()
    return matrix


def gather_entries(matrix: Tensor, index: Tensor, window: int, group: int) -> Tensor:
    """The inverse of `gather_matrix`: the entries of a matrix under the index."""
    row_blocks, entries = index.shape
    tile, features = matrix.shape[0] // row_blocks, matrix.shape[1]
    per_window = entries // math.ceil(features / window)
    values = torch.zeros(row_blocks, entries, group, tile, dtype=torch.float64)
    slots = index.tolist()
    for r in range(row_blocks):
        for e in range(entries):
            first = (e // per_window) * window + slots[r][e] * group
            for s in range(group):
                values[r, e, s] = matrix[r * tile : (r + 1) * tile, first + s]
    return values


def unpermuted_matrix(matrix: Tensor, perm: Tensor) -> Tensor:
    """The effective weight: W[:, perm[j]] = S[:, j]."""
    if not perm.numel():
        return matrix
    effective = torch.zeros_like(matrix)
    for j, feature in enumerate(perm.tolist()):
        effective[:, feature] = matrix[:, j]
    return effective


def permuted_columns(matrix: Tensor, perm: Tensor) -> Tensor:
    """S from the effective weight."""
    return matrix[:, perm.long()] if perm.numel() else matrix


def activated(name: str, x: Tensor) -> Tensor:
    """Activations in float64 from their definitions."""
    if name == "relu":
        return x.clamp(min=0)
    if name == "gelu":
        return x * (1 + torch.erf(x / math.sqrt(2))) / 2
    if name == "gelu_tanh":
        return x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2
    if name == "silu":
        return x / (1 + torch.exp(-x))
    assert name == "none"
    return x


def assert_sums(got: Tensor, want: Tensor, magnitude: Tensor, terms: int) -> None:
    """`got` is `want` up to one rounding and the rounding of a sum of `terms` terms.

    `magnitude` is the sum of the terms' absolute values.
    """
    accumulate = torch.float64 if got.dtype == torch.float64 else torch.float32
    rounding, adding = torch.finfo(got.dtype), torch.finfo(accumulate)
    allowed = (
        rounding.eps * want.abs()
        + ERROR_FACTOR * (terms + 1) * adding.eps * magnitude
        + rounding.smallest_normal * rounding.eps
    )
    assert got.shape == want.shape
    error = (got.detach().cpu().double() - want).abs()
    assert not error.isnan().any(), "NaN in the result"
    excess = (error - allowed).max().item() if error.numel() else 0.0
    assert excess <= 0, f"off by {error.max().item():.3g}, {excess:.3g} more than allowed"
