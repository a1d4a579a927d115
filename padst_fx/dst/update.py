"""The one exact update: as many units grown as dropped, in every group."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Choice:
    """What an update decides for one layer: the new units and what was exchanged.

    `units` is `[groups, active]` int64, ascending in each group. `dropped` and `grown` count
    units and are equal; the score ranges are those of the exchanged units, None without any.
    """

    units: Tensor
    dropped: int
    grown: int
    drop_range: tuple[float, float] | None
    growth_range: tuple[float, float] | None


def choose_units(
    units: Tensor, drop_scores: Tensor, candidates: Tensor, growth_scores: Tensor, count: int
) -> Choice:
    """Drop the `count` weakest units, grow the best inactive candidates of their groups.

    `units`, `drop_scores`: `[groups, active]`; `candidates`, `growth_scores`: `[groups, C]`, a
    negative score marks what is no candidate. The weakest units are taken over all groups
    together, but no group loses more than it has inactive candidates to grow, so fewer than
    `count` may go. Equal scores are settled by position, the same on every rank.
    """
    groups, active = units.shape
    if count == 0 or candidates.shape[1] == 0:
        return Choice(units, 0, 0, None, None)
    inactive = (growth_scores >= 0) & ~_contains(units, candidates)
    room = inactive.sum(1, keepdim=True)
    rank = drop_scores.argsort(dim=1, stable=True).argsort(dim=1)
    eligible = torch.where(rank < room, drop_scores, torch.inf).view(-1)
    count = min(count, int(room.clamp(max=active).sum()))
    weakest = eligible.argsort(stable=True)[:count]
    dropped = torch.zeros(groups * active, dtype=torch.bool, device=units.device)
    dropped = dropped.index_fill_(0, weakest, True).view(groups, active)

    ranked = torch.where(inactive, growth_scores, -torch.inf)
    best = ranked.argsort(dim=1, descending=True, stable=True)
    place = (dropped.cumsum(1) - 1).clamp(min=0, max=best.shape[1] - 1)
    grown = candidates.gather(1, best.gather(1, place))
    chosen = torch.where(dropped, grown, units).sort(dim=1).values
    growth = growth_scores.gather(1, best.gather(1, place))[dropped]
    return Choice(chosen, count, count, _range(drop_scores[dropped]), _range(growth))


def _contains(units: Tensor, candidates: Tensor) -> Tensor:
    """Whether each candidate is among its group's units, which are ascending."""
    position = torch.searchsorted(units, candidates.contiguous()).clamp_(max=units.shape[1] - 1)
    return units.gather(1, position) == candidates


def _range(scores: Tensor) -> tuple[float, float] | None:
    if scores.numel() == 0:
        return None
    low, high = scores.aminmax()
    return float(low), float(high)
