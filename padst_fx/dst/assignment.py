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
# A move must gain so many standard deviations of what chance adds to its score: the best of a few
# hundred features is about three above their mean by chance alone.
CAUTION = 3.0
# By this much more staying counts: among columns of equal masks an exchange gains nothing.
INERTIA = 1e-3
# What nothing else decides (features that are zero, say) the distance does, not rounding.
NEARNESS = 1e-6
# A trust of so many times the largest one worth trying moves nothing.
WIDEST_TRUST = 1e3


@dataclass(frozen=True)
class Wanted:
    """What a scoring step tells: `change` `[O, J]`, the least-squares change of dense weights on
    the considered features, times the curvature; `power` `[J]`, the features' second moments;
    and the variance of `change * power**0.5`, which is `noise` `[O]` times `spread` `[J]`."""

    change: Tensor
    power: Tensor
    noise: Tensor
    spread: Tensor

    @classmethod
    def of(cls, signal: Tensor, shrinkage: float) -> Wanted:
        """From a `permutation_signal` `[O + O + J, J]`: `-G A^-1`, with the moments `A` shrunk
        towards their diagonal. A feature that is always zero wants nothing."""
        outputs = (signal.shape[0] - signal.shape[1]) // 2
        first, second, moments = signal.split([outputs, outputs, signal.shape[1]])
        power = moments.diagonal().clone()
        shrunk = moments * (1 - shrinkage)
        shrunk.diagonal().copy_(torch.where(power > 0, power, 1))
        inverse = torch.linalg.inv(shrunk)
        change = -(first + second) @ inverse
        # Var(G_ic) is noise_i A_cc; half the tokens each, so the difference has the sum's variance.
        seen = torch.where(power > 0, power, torch.inf)
        noise = ((first - second).square() / seen).mean(1)
        spread = power * ((inverse @ moments) * inverse).sum(1)
        return cls(change, power, noise, spread)


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
    """Scores for any trust in the present values: `capture(change + trust * values)`, less what
    chance adds to it, and for a move less `CAUTION` standard deviations of that as well."""

    def __init__(self, wanted: Wanted, values: Tensor, mask: Tensor) -> None:
        weights = mask.to(wanted.change.dtype)
        seen = capture(wanted.change, wanted.power, weights)
        self.linear = (weights.t() @ (wanted.change * values)) * (2 * wanted.power)
        self.square = capture(values, wanted.power, weights)
        self.least_trust = _ratio(seen, self.square)
        chance = (weights.t() @ wanted.noise)[:, None] * wanted.spread
        # A normal number's square has twice its variance squared for a variance.
        deviation = (2 * (weights.t() @ wanted.noise.square())).sqrt()[:, None] * wanted.spread
        deviation.fill_diagonal_(0)
        self.constant = seen - chance - CAUTION * deviation

    def score(self, trust: float) -> Tensor:
        """`[J, J]`."""
        return self.constant + trust * self.linear + trust**2 * self.square


def _ratio(seen: Tensor, held: Tensor) -> float:
    """The trust at which values weigh as much as what is wanted; 0 without values."""
    mean = float(held.mean())
    return (float(seen.mean()) / mean) ** 0.5 if mean > 0 else 0.0


def settled(score: Tensor) -> Tensor:
    """The score with a little more for staying, and ties broken towards short ways."""
    place = torch.arange(len(score), dtype=score.dtype, device=score.device) / len(score)
    way = (place[:, None] - place).square()
    result = score - NEARNESS * score.abs().mean() * way
    result.diagonal().add_(INERTIA * score.diagonal().abs())
    return result


def choose_features(gain: Gain, curvature: float | None, limit: int) -> Tensor:
    """The place, among the considered features, of the feature that each position reads next.

    Without a curvature all stay. With one every position takes part in the assignment that gains
    most; values are trusted at least so much that all together they weigh what is wanted, and
    just so much more that at most `limit` positions move.
    """
    present = torch.arange(len(gain.constant), device="cpu")
    if curvature is None or not limit:
        return present
    low = max(curvature, gain.least_trust)
    order = assign(settled(gain.score(low)))
    if _moved(order) <= limit:
        return order
    best, high = present, low * WIDEST_TRUST
    for _ in range(BISECTIONS):
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
