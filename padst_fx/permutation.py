"""Permutations: index vectors `perm` with `(Pi x)_j = x[perm[j]]`; length 0 stands for identity."""

from __future__ import annotations

import torch
from torch import Tensor

PERMUTATIONS = ("identity", "random", "learned", "soft")


def check_permutation(kind: str) -> str:
    """The kind itself, or a `ValueError` that lists the valid ones."""
    if kind not in PERMUTATIONS:
        valid = ", ".join(map(repr, PERMUTATIONS))
        raise ValueError(f"unknown permutation {kind!r}; valid: {valid}")
    return kind


def permutation_length(kind: str, features: int) -> int:
    """Length of the `perm` buffer: 0 for the identity, which is never read through."""
    return 0 if check_permutation(kind) == "identity" else features


def draw_permutation(
    kind: str, features: int, generator: torch.Generator | None = None
) -> Tensor:
    """A permutation of its kind, int32 of `permutation_length(kind, features)`.

    Learned ones start shuffled (docs/permutations.md has what that gains), soft ones are the
    identity until they are hardened.
    """
    length = permutation_length(kind, features)
    if kind not in ("random", "learned"):
        return torch.arange(length, dtype=torch.int32, device="cpu")
    return torch.randperm(features, generator=generator, dtype=torch.int32, device="cpu")


def is_permutation(perm: Tensor) -> bool:
    """Whether every position is there once (true for the empty one)."""
    return torch.equal(perm.sort().values, torch.arange(len(perm)).to(perm))


def inverse(perm: Tensor) -> Tensor:
    """The permutation that undoes `perm`."""
    result = torch.empty_like(perm)
    result[perm.long()] = torch.arange(len(perm), dtype=perm.dtype, device=perm.device)
    return result


def permute_columns(matrix: Tensor, perm: Tensor) -> Tensor:
    """From the structure's columns to the inputs': `W[:, perm[j]] = S[:, j]`."""
    return matrix.index_select(1, inverse(perm)) if perm.numel() else matrix


def unpermute_columns(matrix: Tensor, perm: Tensor) -> Tensor:
    """From the inputs' columns to the structure's: `S[:, j] = W[:, perm[j]]`."""
    return matrix.index_select(1, perm) if perm.numel() else matrix
