"""A start for `NM`: features that are seldom heavy in the same row come together."""

from __future__ import annotations

import torch
from torch import Tensor

STEPS = 4


def apart(energy: Tensor, sizes: list[int]) -> Tensor:
    """A permutation that fills windows of the given sizes one after the other.

    `energy` is `[rows, features]`. Each window takes, of what is left, the feature of most energy
    and those that are least in its way and in one another's: the first entries of a power
    iteration on the affinities, from that feature on.
    """
    size = energy.sqrt()
    size = size / size.norm(dim=0).clamp_min(torch.finfo(size.dtype).tiny)
    conflict = size.t() @ size
    affinity = (conflict.mean() - conflict).clamp_min_(0)
    left, strength = torch.ones_like(affinity[0], dtype=torch.bool), energy.sum(0)
    filled: list[Tensor] = []
    for length in sizes:
        first = strength.masked_fill(~left, -1).argmax()
        weight = affinity[first] * left
        for _ in range(STEPS):
            weight = weight * (affinity @ weight) * left
            weight = weight / weight.amax().clamp_min(torch.finfo(size.dtype).tiny)
        weight = weight.masked_fill(~left, -1)
        weight[first] = torch.inf
        chosen = weight.argsort(descending=True, stable=True)[:length]
        left[chosen] = False
        filled.append(chosen)
    return torch.cat(filled)
