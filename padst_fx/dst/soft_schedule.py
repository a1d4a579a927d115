"""How soft permutations are trained: settings, and what follows from them at a step."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class SoftPermutation:
    """Settings of `permutation="soft"`, for `padst_fx.DST(..., soft=...)`.

    `weight`: of the penalty, which rises along a line for the first `warmup` (a share of the soft
    phase). `harden_at`: the step from which no layer stays soft, None for half of `t_end`.
    `threshold`: after the warm-up a layer whose penalty per row and column is below it may
    harden earlier. `events`: how many times layers may harden, together each time; each costs a
    recompilation. `learning_rate`: of the matrices, None for the optimizer's own.
    `sinkhorn_iterations`: of the projection after each step. Raises `ValueError` for values out
    of range.
    """

    weight: float = 1.0
    warmup: float = 0.75
    harden_at: int | None = None
    threshold: float = 0.05
    events: int = 2
    learning_rate: float | None = None
    sinkhorn_iterations: int = 3

    def __post_init__(self) -> None:
        _check(self.weight >= 0, "weight", self.weight, "at least 0")
        _check(0 <= self.warmup <= 1, "warmup", self.warmup, "in [0, 1]")
        at = self.harden_at
        _check(at is None or _is_count(at), "harden_at", at, "a positive number of steps or None")
        _check(self.threshold >= 0, "threshold", self.threshold, "at least 0")
        _check(_is_count(self.events), "events", self.events, "a positive integer")
        rate = self.learning_rate
        _check(rate is None or rate > 0, "learning_rate", rate, "positive or None")
        iterations = self.sinkhorn_iterations
        _check(_is_count(iterations), "sinkhorn_iterations", iterations, "a positive integer")


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _check(holds: bool, name: str, value: object, valid: str) -> None:
    if not holds:
        raise ValueError(f"SoftPermutation: {name} must be {valid}, got {value!r}")


@dataclass(frozen=True)
class SoftSchedule:
    """The settings on a training's steps; everything is a pure function of the step."""

    settings: SoftPermutation
    delta_t: int
    t_end: int

    @property
    def last_step(self) -> int:
        """The update step at which everything is hardened."""
        asked = self.settings.harden_at or self.t_end // 2
        return self._update_step(asked)

    def weight(self, step: int) -> float:
        """Of the penalty after that many steps."""
        return self.settings.weight * min(1.0, (step + 1) / max(1.0, self._rise))

    def event_steps(self) -> list[int]:
        """The update steps at which layers may harden: evenly spread between the end of the
        warm-up (before it any matrix is near a permutation, the one it started from) and the
        last one."""
        events, span = self.settings.events, self.last_step - self._rise
        # The last one is named: in floating point the sum may end a little before it.
        early = (math.floor(self._rise + span * k / events) for k in range(1, events))
        return sorted({*map(self._update_step, early), self.last_step})

    @property
    def _rise(self) -> float:
        return self.settings.warmup * self.last_step

    def _update_step(self, step: int) -> int:
        """The first update step at or after a step."""
        return max(1, -(-step // self.delta_t)) * self.delta_t
