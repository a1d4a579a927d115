"""Improving a permutation step by step, never to a worse one."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from padst_fx.permutation_search.objective import retained_share
from padst_fx.structures import Pattern

ROUNDS = 30
LEAST_GAIN = 3e-4


def climb(
    pattern: Pattern, size: Tensor, start: Tensor, improve: Callable[[Tensor], None]
) -> Tensor:
    """The best permutation met from `start` on; `improve` changes one in place.

    Stops after a round that adds less than `LEAST_GAIN` of the energy, or after `ROUNDS`.
    """
    best, kept = start, retained_share(pattern, size, start)
    for _ in range(ROUNDS):
        perm = best.clone()
        improve(perm)
        now = retained_share(pattern, size, perm)
        gained = now - kept
        if gained > 0:
            best, kept = perm, now
        if gained < LEAST_GAIN:
            break
    return best
