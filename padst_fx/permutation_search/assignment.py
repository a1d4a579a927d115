"""Which feature each position reads: assignments that never lower their total gain."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

LARGEST = 1024


def reassign(perm: Tensor, positions: Tensor, gain: Tensor) -> None:
    """Deal the features at `positions` out anew, in place, for the largest total gain.

    `gain` `[n, n]`: of the features that are there (columns, in the order of `positions`) at
    each of the positions (rows). Hungarian method, O(n^3), on the CPU.
    """
    from scipy.optimize import linear_sum_assignment

    _, chosen = linear_sum_assignment(gain.double().cpu().numpy(), maximize=True)
    perm[positions] = perm[positions[torch.from_numpy(chosen).to(perm.device)]]


def parts(positions: Tensor, generator: torch.Generator) -> Iterator[Tensor]:
    """Positions in random parts of at most `LARGEST`, which bounds an assignment's cost."""
    order = torch.randperm(len(positions), generator=generator).to(positions.device)
    yield from positions[order].chunk(-(-len(positions) // LARGEST))


def greedy(gain: Tensor, capacity: int) -> Tensor:
    """A permutation from gains `[slots, features]` of slots that take `capacity` features each.

    The feature of largest gain chooses first. One pass, O(slots * features): a start to improve on.
    """
    order = gain.amax(dim=0).argsort(descending=True, stable=True)
    wishes = gain.t().contiguous().cpu().numpy()
    free = [capacity] * gain.shape[0]
    perm = torch.empty(gain.shape[1], dtype=torch.int64)
    for feature in order.tolist():
        slot = int(wishes[feature].argmax())
        free[slot] -= 1
        perm[slot * capacity + free[slot]] = feature
        if free[slot] == 0:
            wishes[:, slot] = -float("inf")
    return perm.to(gain.device)
