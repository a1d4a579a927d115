"""The search: sensible starts, each improved as far as it goes, and the best of them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from padst_fx.permutation_search.alternation import alternate
from padst_fx.permutation_search.blocks import clustered
from padst_fx.permutation_search.climb import climb
from padst_fx.permutation_search.diagonals import aligned
from padst_fx.permutation_search.objective import Retained, retained_share
from padst_fx.permutation_search.windows import apart, exchange, grown
from padst_fx.structures import Pattern
from padst_fx.structures.block import BlockPattern
from padst_fx.structures.diag import DiagPattern
from padst_fx.structures.nm import NMPattern

SEED = 0
CLIMBED = 2


@torch.no_grad()
def search(pattern: Pattern, size: Tensor) -> tuple[Tensor, Retained]:
    """A permutation int64 `[in]` behind which the strongest units keep much of `size`, and how
    much.

    `size` `[out, in]` are the weights' (weighted) magnitudes. Of the identity and the starts that
    suit the structure the best `CLIMBED` are improved. Never keeps less than the identity. The
    same for the same input: what is drawn comes from a generator of its own. A local optimum:
    the problem is a quadratic assignment. `Unstructured` gets the identity, than which nothing
    keeps more; so does a matrix that is not finite.
    """
    identity = torch.arange(pattern.in_features, device=size.device)
    without = retained_share(pattern, size, identity)
    if type(pattern) not in _METHODS or not bool(torch.isfinite(size).all()):
        return identity, Retained(without, without)
    generator = torch.Generator().manual_seed(SEED)
    starts, improve = _METHODS[type(pattern)](pattern, size, generator)
    kept = [(retained_share(pattern, size, start), start) for start in (identity, *starts)]
    kept.sort(key=lambda pair: -pair[0])
    climbed = [climb(pattern, size, start, improve) for _, start in kept[:CLIMBED]]
    shares = [retained_share(pattern, size, perm) for perm in climbed]
    best = max(range(len(shares)), key=shares.__getitem__)
    return climbed[best], Retained(without, shares[best])


# What a structure starts from besides the identity, and what improves a permutation in place.
_Method = tuple[list[Tensor], Callable[[Tensor], None]]


def _for_diagonals(pattern: DiagPattern, size: Tensor, generator: torch.Generator) -> _Method:
    improve = partial(alternate, pattern, pattern.structure.width, size, generator)
    return [aligned(pattern, size)], improve


def _for_blocks(pattern: BlockPattern, size: Tensor, generator: torch.Generator) -> _Method:
    improve = partial(alternate, pattern, pattern.structure.size, size, generator)
    return [clustered(pattern, size)], improve


def _for_windows(pattern: NMPattern, size: Tensor, generator: torch.Generator) -> _Method:
    starts = [grown(pattern, size, generator), apart(pattern, size)]
    return starts, partial(exchange, pattern, size, generator)


_METHODS: dict[type[Pattern], Callable[[Any, Tensor, torch.Generator], _Method]] = {
    DiagPattern: _for_diagonals,
    BlockPattern: _for_blocks,
    NMPattern: _for_windows,
}
