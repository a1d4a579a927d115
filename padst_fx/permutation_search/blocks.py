"""A start for `Block`: columns whose energy lies in the same block rows come together."""

from __future__ import annotations

import torch
from torch import Tensor

from padst_fx.structures.block import BlockPattern

ROUNDS = 2


def clustered(pattern: BlockPattern, size: Tensor) -> Tensor:
    """A permutation that fills block columns one after the other.

    Each takes, of the columns that are left, the one of most energy and those most like it
    (by the cosine of their profiles over block rows), then those most like all of these.
    """
    width = pattern.structure.size
    profile = size.square().unflatten(0, (-1, width)).sum(1).sqrt()
    length = profile.norm(dim=0)
    direction = profile / length.clamp_min(torch.finfo(profile.dtype).tiny)
    left = torch.ones_like(length, dtype=torch.bool)
    filled: list[Tensor] = []
    for _ in range(pattern.candidates):
        centre = direction[:, length.masked_fill(~left, -1).argmax()]
        for _ in range(ROUNDS):
            likeness = (centre @ direction).masked_fill(~left, -torch.inf)
            chosen = likeness.argsort(descending=True, stable=True)[:width]
            centre = direction[:, chosen].sum(1)
        left[chosen] = False
        filled.append(chosen)
    return torch.cat(filled)
