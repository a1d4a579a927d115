"""Times of calls that take turns, so that what else the machine does falls on all alike."""

from __future__ import annotations

import gc
import random
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

SPAN = 0.02
MOST_PASSES = 200


@dataclass(frozen=True)
class Timing:
    """Seconds per call, one number a round."""

    rounds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.rounds)

    @property
    def quartiles(self) -> tuple[float, float]:
        """The lower and the upper one; half of the rounds lie between them."""
        return quartiles(self.rounds)

    @property
    def spread(self) -> float:
        """The distance of the quartiles, as a share of the median."""
        low, high = self.quartiles
        return (high - low) / self.median


@dataclass(frozen=True)
class Ratio:
    """How many times faster than the baseline: of the medians, and quartiles over rounds."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, baseline: Timing, own: Timing) -> Ratio:
        pairs = zip(baseline.rounds, own.rounds, strict=True)
        low, high = quartiles([slow / fast for slow, fast in pairs])
        return cls(baseline.median / own.median, low, high)


def quartiles(values: tuple[float, ...] | list[float]) -> tuple[float, float]:
    """The lower and the upper quartile; of a single value itself."""
    if len(values) == 1:
        return values[0], values[0]
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, high


def interleaved(
    calls: Mapping[str, Callable[[], object]], rounds: int, span: float = SPAN
) -> dict[str, Timing]:
    """Time calls in turn: a round is as many passes over all of them as fit `span` seconds.

    Every pass takes them in a new order, so no call always finds the caches as the same other
    one left them. Each is called once before, which is not counted.
    """
    order = random.Random(0)
    names = list(calls)
    passes = _passes(calls, span)
    rows: dict[str, list[float]] = {name: [] for name in names}
    enabled = gc.isenabled()
    gc.disable()
    try:
        for _ in range(rounds):
            sums = dict.fromkeys(names, 0.0)
            for _ in range(passes):
                for name in order.sample(names, len(names)):
                    sums[name] += seconds(calls[name])
            for name in names:
                rows[name].append(sums[name] / passes)
    finally:
        if enabled:
            gc.enable()
    return {name: Timing(tuple(row)) for name, row in rows.items()}


def _passes(calls: Mapping[str, Callable[[], object]], span: float) -> int:
    for call in calls.values():
        call()
    one = sum(seconds(call) for call in calls.values())
    return max(1, min(MOST_PASSES, int(span / one)))


def seconds(call: Callable[[], object]) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
