"""The search: sensible starts, each improved as far as it goes, and the best of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from padst_fx.permutation_search.alternation import alternate
from padst_fx.permutation_search.blocks import clustered
from padst_fx.permutation_search.climb import climb
from padst_fx.permutation_search.diagonals import aligned
from padst_fx.permutation_search.objective import Retained, retained_share
from padst_fx.permutation_search.windows import exchange, grown, spread_out
from padst_fx.structures import Pattern
from padst_fx.structures.block import BlockPattern
from padst_fx.structures.diag import DiagPattern
from padst_fx.structures.nm import NMPattern

SEED = 0


@torch.no_grad()
def search(pattern: Pattern, size: Tensor) -> tuple[Tensor, Retained]:
    """A permutation int64 `[in]` behind which the strongest units keep much of `size`, and how
    much.

    `size` `[out, in]` are the weights' (weighted) magnitudes. Never keeps less than the
    identity. The same for the same input: what is drawn comes from a generator of its own. A
    local optimum: the problem contains quadratic assignment. `Unstructured` gets the identity,
    than which nothing keeps more; so does a matrix that is not finite.
    """
    identity = torch.arange(pattern.in_features, device=size.device)
    best, kept = identity, retained_share(pattern, size, identity)
    without = kept
    generator = torch.Generator().manual_seed(SEED)
    if bool(torch.isfinite(size).all()):
        for start, improve in _starts(pattern, size, identity, generator):
            perm = climb(pattern, size, start, improve)
            share = retained_share(pattern, size, perm)
            if share > kept:
                best, kept = perm, share
    return best, Retained(without, kept)


def _starts(
    pattern: Pattern, size: Tensor, identity: Tensor, generator: torch.Generator
) -> Iterator[tuple[Tensor, Callable[[Tensor], None]]]:
    """Where to start, and what improves it in place."""
    if isinstance(pattern, NMPattern):
        starts = [identity, *grown(pattern, size, generator), *spread_out(pattern, size)]
        step = partial(exchange, pattern, size, generator)
    elif isinstance(pattern, DiagPattern):
        starts = [identity, *aligned(pattern, size)]
        step = partial(alternate, pattern, pattern.structure.width, size, generator)
    elif isinstance(pattern, BlockPattern):
        starts = [identity, *clustered(pattern, size)]
        step = partial(alternate, pattern, pattern.structure.size, size, generator)
    else:
        return
    for start in starts:
        yield start, step
