"""A start for `Diag`: columns laid along one another until their heavy diagonals fall together.

Behind the right permutation every column has the same pattern, moved by its position. So one
column, put at position 0, is a first estimate of how heavy each diagonal is; all the others are
placed where they agree most with the estimate, and the estimate is made again from all of them.

Agreement is a cosine, of square roots of magnitudes: where heavy entries are matters more than how
heavy each is.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from padst_fx.permutation_search.assignment import greedy
from padst_fx.structures.diag import DiagPattern

# How many times as many columns each estimate is made from as the one before. Columns of a wide
# matrix cross few of the diagonals each, so they are added from near to far.
GROWTH, GROWTH_IF_WIDE = 3.0, 1.3
SETTLING = 5


def aligned(pattern: DiagPattern, size: Tensor) -> Tensor:
    """A permutation that lays all columns along the one of most energy.

    Estimates are made from the columns that agree most only, more of them in each round, then
    from all in `SETTLING` more rounds.
    """
    width = pattern.structure.width
    growth = GROWTH if pattern.tall else GROWTH_IF_WIDE
    energy = size.square().unflatten(0, (-1, width)).sum(1)
    reference = energy.sum(dim=0).argmax()
    tiles = torch.nn.functional.normalize(energy.sqrt().sqrt(), dim=0)
    spectra = torch.fft.rfft(tiles, n=pattern.diagonals, dim=0)
    slots = tiles.shape[1] // width
    gain = _agreement(pattern, spectra, _first_estimate(pattern, tiles[:, reference]))
    gain = gain.roll(_turn(gain, slots), dims=0)[:slots]
    perm, trusted = greedy(gain, width), 1
    while trusted < len(perm) * growth**SETTLING:
        trusted = math.ceil(trusted * growth)
        weight = _diagonal_means(pattern, tiles, perm, _surest(gain, perm, trusted))
        gain = _agreement(pattern, spectra, weight)[:slots]
        perm = greedy(gain, width)
    return perm


def _first_estimate(pattern: DiagPattern, column: Tensor) -> Tensor:
    """`[P]`: what each diagonal weighs if the column `[out / width]` stands at position 0."""
    rows = torch.arange(len(column), device=column.device)
    weight = column.new_zeros(pattern.diagonals)
    weight[rows if pattern.tall else -rows % pattern.diagonals] = column - column.mean()
    return weight


def _agreement(pattern: DiagPattern, spectra: Tensor, weight: Tensor) -> Tensor:
    """`[P, features]`: the sum of a column over rows, each times its diagonal's weight, at each
    of P positions around the circle; `spectra` are the columns' Fourier transforms."""
    spectrum = torch.fft.rfft(weight)[:, None]
    product = spectra * spectrum.conj() if pattern.tall else spectra * spectrum
    return torch.fft.irfft(product, n=pattern.diagonals, dim=0)


def _turn(gain: Tensor, slots: int) -> int:
    """How far to turn the circle so that most features have their best place among the first
    `slots`, where the matrix really has columns."""
    count = gain.shape[0]
    if slots == count:
        return 0
    wanted = torch.bincount(gain.argmax(dim=0), minlength=count)
    summed = torch.cat((wanted.new_zeros(1), wanted, wanted)).cumsum(0)
    inside = summed[slots : slots + count] - summed[:count]
    return -int(inside.argmax())


def _surest(gain: Tensor, perm: Tensor, count: int) -> Tensor:
    """Whether each feature is among the `count` that agree most with the place they got."""
    slot = torch.arange(len(perm), device=perm.device) // (len(perm) // gain.shape[0])
    order = perm[gain[slot, perm].argsort(descending=True, stable=True)]
    return torch.zeros_like(order, dtype=torch.bool).index_fill_(0, order[:count], True)


def _diagonal_means(
    pattern: DiagPattern, tiles: Tensor, perm: Tensor, trusted: Tensor
) -> Tensor:
    """`[P]`: the mean of every diagonal behind `perm` over trusted columns, less the mean of all
    that these columns cross; 0 for diagonals that they do not cross."""
    rows, width = tiles.shape[0], pattern.structure.width
    position = torch.arange(len(perm), device=perm.device)[trusted[perm]]
    row = torch.arange(rows, device=perm.device)[:, None]
    slot = position // width
    diagonal = ((row - slot if pattern.tall else slot - row) % pattern.diagonals).flatten()
    entries = tiles[:, perm[position]].flatten()
    sums = entries.new_zeros(pattern.diagonals).index_add_(0, diagonal, entries)
    counts = torch.bincount(diagonal, minlength=pattern.diagonals)
    means = sums / counts.clamp_min(1)
    return torch.where(counts > 0, means - means.sum() / (counts > 0).sum(), 0)
