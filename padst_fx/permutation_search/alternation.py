"""Units and permutation in turn, for structures whose units couple columns (`Diag`, `Block`).

For fixed units the best permutation is a linear assignment: position j gains from reading
feature c the energy of column c over the rows that j has in the mask. For a fixed permutation
the best units are the strongest. Neither half step lowers the energy kept.
"""

from __future__ import annotations

import torch
from torch import Tensor

from padst_fx.permutation_search.assignment import parts, reassign
from padst_fx.permutation_search.objective import strongest_units
from padst_fx.structures import Pattern


def alternate(
    pattern: Pattern, grain: int, size: Tensor, generator: torch.Generator, perm: Tensor
) -> None:
    """The strongest units behind `perm`, then the best permutation for them, in place.

    `grain` consecutive rows, and as many positions, share their mask. Of more than
    `assignment.LARGEST` features, random parts are dealt out one after the other.
    """
    energy = size.square().unflatten(0, (-1, grain)).sum(1)
    units = strongest_units(pattern, size, perm)
    mask = pattern.mask(pattern.index_from_units(units))[::grain, ::grain].to(energy.dtype)
    for positions in parts(torch.arange(len(perm), device=perm.device), generator):
        gain = mask[:, positions // grain].t() @ energy[:, perm[positions]]
        reassign(perm, positions, gain)
