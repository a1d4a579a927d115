"""Drop schedules: the share of active units an update replaces, a pure function of the step."""

from __future__ import annotations

import math
from collections.abc import Callable

Schedule = Callable[[int, int, float], float]


def cosine(step: int, t_end: int, initial: float) -> float:
    """`initial / 2 (1 + cos(pi step / t_end))`, 0 from t_end (RigL, arXiv:1911.11134)."""
    if step >= t_end:
        return 0.0
    return initial / 2 * (1 + math.cos(math.pi * step / t_end))


def linear(step: int, t_end: int, initial: float) -> float:
    """`initial (1 - step / t_end)`; 0 from t_end."""
    return initial * max(0.0, 1 - step / t_end)


def constant(step: int, t_end: int, initial: float) -> float:
    """`initial` before t_end, then 0."""
    return initial if step < t_end else 0.0


SCHEDULES: dict[str, Schedule] = {"cosine": cosine, "linear": linear, "constant": constant}
