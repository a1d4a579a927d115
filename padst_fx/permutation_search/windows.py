"""N:M: only which features share a window matters, and each row (of tiles) chooses for itself.

Take one feature out of every window. A window's rest keeps its n strongest in a row; a feature
that joins adds what it has above the n-th of them. So dealing the features that were taken out
to the windows again is a linear assignment whose gains are exact: it never lowers the energy
kept. The same builds windows up from nothing, one feature each at a time.
"""

from __future__ import annotations

import torch
from torch import Tensor

from padst_fx.permutation_search.assignment import parts, reassign
from padst_fx.structures.nm import NMPattern

POWER_STEPS = 4
TINY = torch.finfo(torch.float32).tiny


def exchange(
    pattern: NMPattern, size: Tensor, generator: torch.Generator, perm: Tensor
) -> None:
    """Every feature is once taken out of its window and dealt out anew, in place."""
    energy = _energy(pattern, size)
    slots = torch.rand(pattern.windows, pattern.m, generator=generator).argsort(dim=1)
    first = torch.arange(pattern.windows)[:, None] * pattern.m
    for taken in (first + slots).t().to(perm.device):
        for positions in parts(taken[taken < pattern.in_features], generator):
            rest = torch.ones_like(perm, dtype=torch.bool)
            rest[positions] = False
            reassign(perm, positions, _gains(pattern, energy, perm, positions, rest))


def grown(pattern: NMPattern, size: Tensor, generator: torch.Generator) -> Tensor:
    """A permutation that builds windows up feature by feature, those of most energy first."""
    energy = _energy(pattern, size)
    perm = torch.empty(pattern.in_features, dtype=torch.int64, device=size.device)
    slot = torch.arange(pattern.in_features, device=size.device) % pattern.m
    by_slot = slot.argsort(stable=True)
    perm[by_slot] = energy.sum(0).argsort(descending=True, stable=True)
    for joining in range(1, pattern.m):
        for positions in parts((slot == joining).nonzero().view(-1), generator):
            gain = _gains(pattern, energy, perm, positions, slot < joining)
            reassign(perm, positions, gain)
    return perm


def apart(pattern: NMPattern, size: Tensor) -> Tensor:
    """A permutation that fills windows one after the other with features seldom heavy together.

    Each takes, of what is left, the feature of most energy and those that are least in its way
    and in one another's: the first of a few power iterations on the affinities, from it on.
    """
    heights = _energy(pattern, size).sqrt()
    strength = heights.norm(dim=0)
    heights = heights / strength.clamp_min(TINY)
    conflict = heights.t() @ heights
    affinity = (conflict.mean() - conflict).clamp_min_(0)
    left = torch.ones_like(strength, dtype=torch.bool)
    filled: list[Tensor] = []
    for window in range(pattern.windows):
        first = strength.masked_fill(~left, -1).argmax()
        weight = affinity[first] * left
        for _ in range(POWER_STEPS):
            weight = weight * (affinity @ weight)
            weight = weight / weight.amax().clamp_min(TINY)
        weight = weight.masked_fill(~left, -1)
        weight[first] = torch.inf
        length = min(pattern.m, pattern.in_features - window * pattern.m)
        chosen = weight.argsort(descending=True, stable=True)[:length]
        left[chosen] = False
        filled.append(chosen)
    return torch.cat(filled)


def _energy(pattern: NMPattern, size: Tensor) -> Tensor:
    """`[tiles, features]`: what a tile of rows, which choose together, has in each feature."""
    return size.square().unflatten(0, (-1, pattern.structure.tile)).sum(1)


def _gains(
    pattern: NMPattern, energy: Tensor, perm: Tensor, positions: Tensor, rest: Tensor
) -> Tensor:
    """`[n, n]`: what each feature at `positions` (columns) adds to each position's window (rows)
    of which the positions in the mask `rest` are there."""
    padding = pattern.windows * pattern.m - pattern.in_features
    present = torch.nn.functional.pad(energy[:, perm] * rest, (0, padding))
    by_window = present.unflatten(1, (pattern.windows, pattern.m))[:, positions // pattern.m]
    least = by_window.topk(pattern.active, dim=2).values[:, :, -1].t()
    joining = energy[:, perm[positions]].t()
    # The sum of max(a - b, 0) is half the sum of a - b and |a - b|.
    difference = joining.sum(1) - least.sum(1)[:, None]
    return (difference + torch.cdist(least, joining, p=1)) / 2
