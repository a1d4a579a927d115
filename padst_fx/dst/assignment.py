"""Which feature each position of a learned permutation should read: the maths of one layer.

`J` positions are considered, `[O, J]` matrices are in the structure's coordinates, and all of it
is in units of the gradient: a weight `w` appears as `curvature * w`. See docs/permutations.md.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

BISECTIONS = 5
# Of the moves allowed; where so many are made no more are looked for.
ENOUGH = 0.75
# By this much more staying counts: among columns of equal masks an exchange gains nothing.
INERTIA = 1e-3
# What nothing else decides (features that are zero, say) the distance does, not rounding.
NEARNESS = 1e-6
# A trust of so many times the largest one worth trying moves nothing.
WIDEST_TRUST = 1e3


@dataclass(frozen=True)
class Wanted:
    """What a scoring step tells: `change` `[O, J]`, the least-squares change of dense weights on
    the considered features, times the curvature; `power` `[J]`, the features' second moments."""

    change: Tensor
    power: Tensor

    @classmethod
    def of(cls, signal: Tensor, shrinkage: float) -> Wanted:
        """From a `permutation_signal` `[O + J, J]`: `-G A^-1`, with the moments `A` shrunk towards
        their diagonal. A feature that is always zero wants nothing."""
        outputs = signal.shape[0] - signal.shape[1]
        gradient, moments = signal[:outputs], signal[outputs:]
        power = moments.diagonal().clone()
        shrunk = moments * (1 - shrinkage)
        shrunk.diagonal().copy_(torch.where(power > 0, power, 1))
        return cls(-torch.linalg.solve(shrunk, gradient, left=False), power)


def capture(change: Tensor, power: Tensor, mask: Tensor) -> Tensor:
    """`[J, J]`: what position j gains by reading feature c, `sum_{i in R(j)} change_ic^2 power_c`,
    `R(j)` the active rows of the position's column in `mask` `[O, J]`."""
    return (mask.to(change.dtype).t() @ change.square()) * power


def assign(score: Tensor) -> Tensor:
    """The feature of each position that makes the summed score largest: `[J]` int64, on the CPU."""
    from scipy.optimize import linear_sum_assignment

    # Features choose positions, not the other way round: scores differ most between strong and
    # weak features, and the solver (which goes row by row) searches several times longer where
    # all rows want the same few columns.
    _, positions = linear_sum_assignment(score.t().double().cpu().numpy(), maximize=True)
    return torch.from_numpy(positions).argsort()


class Gain:
    """Scores for any trust in the present values: `capture(change + trust * values)`."""

    def __init__(self, wanted: Wanted, values: Tensor, mask: Tensor) -> None:
        weights = mask.to(wanted.change.dtype)
        self.constant = capture(wanted.change, wanted.power, weights)
        self.linear = (weights.t() @ (wanted.change * values)) * (2 * wanted.power)
        self.square = capture(values, wanted.power, weights)

    def score(self, trust: float) -> Tensor:
        """`[J, J]`."""
        return self.constant + trust * self.linear + trust**2 * self.square

    def scale(self) -> float:
        """The trust at which values weigh as much as what is wanted; 0 without values."""
        held = float(self.square.mean())
        return (float(self.constant.mean()) / held) ** 0.5 if held > 0 else 0.0


def settled(score: Tensor) -> Tensor:
    """The score with a little more for staying, and ties broken towards short ways."""
    place = torch.arange(len(score), dtype=score.dtype, device=score.device) / len(score)
    way = (place[:, None] - place).square()
    result = score - NEARNESS * score.mean() * way
    result.diagonal().mul_(1 + INERTIA)
    return result


def choose_features(gain: Gain, curvature: float | None, limit: int) -> Tensor:
    """The place, among the considered features, of the feature that each position reads next.

    With a known curvature every position takes part in the assignment that gains most, unless
    more than `limit` positions would move. Then, and where the curvature is unknown, the present
    values are trusted just so much more that at most `limit` move.
    """
    present = torch.arange(len(gain.constant), device="cpu")
    scale = gain.scale()
    low, high = scale / WIDEST_TRUST, scale * WIDEST_TRUST
    if curvature is not None:
        order = assign(settled(gain.score(curvature)))
        if _moved(order) <= limit:
            return order
        low, high = curvature, max(curvature, scale) * WIDEST_TRUST
    best = present
    for _ in range(BISECTIONS if limit else 0):
        middle = (low * high) ** 0.5
        order = assign(settled(gain.score(middle)))
        if _moved(order) > limit:
            low = middle
            continue
        best, high = order, middle
        if _moved(best) >= ENOUGH * limit:
            break
    return best


def _moved(order: Tensor) -> int:
    return int((order != torch.arange(len(order), device=order.device)).sum())
