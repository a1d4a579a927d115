"""What a search maximises: the energy that the strongest units keep behind a permutation."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from padst_fx.structures import Pattern


@dataclass(frozen=True)
class Retained:
    """Shares of a weight's energy, in [0, 1], that the strongest units keep.

    `identity` without a permutation, `permuted` behind the one that was chosen; the same where
    none is searched.
    """

    identity: float
    permuted: float


def strongest_units(pattern: Pattern, size: Tensor, perm: Tensor) -> Tensor:
    """The units that keep most of `size` `[out, in]` with its columns in the order `perm`."""
    return pattern.strongest_units(pattern.unit_norms_of_dense(size[:, perm]))


def retained_share(pattern: Pattern, size: Tensor, perm: Tensor) -> float:
    """The share of the squared `size` that the strongest units behind `perm` keep.

    1 for a matrix of zeros, which loses nothing.
    """
    energy = pattern.unit_norms_of_dense(size[:, perm]).double().square()
    scores = energy.masked_fill(~pattern.available().to(energy.device), 0)
    kept = scores.topk(pattern.active, dim=1).values.sum()
    total = size.double().square().sum()
    return float(kept / total) if total > 0 else 1.0
