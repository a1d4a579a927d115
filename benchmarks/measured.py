"""Contestants: checked first, then timed in turn. A wrong result gets no time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.table import Row
from benchmarks.timing import Ratio, Timing, interleaved

DENSE = "dense"


class DoesNotRun(Exception):
    """This contestant cannot do the work here; the message says why."""


@dataclass(frozen=True)
class Contestant:
    """Something that does the work. `check` returns its error, 1 being the largest allowed."""

    structure: str
    mode: str
    call: Callable[[], object]
    check: Callable[[], float]
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.structure}, {self.mode}"


def measure(contestants: Sequence[Contestant], rounds: int, facts: Row) -> list[Row]:
    """A row per contestant, `facts` in front: how it did against the best dense one.

    `ratio` is the baseline's median time by its own: above 1 it is faster than dense. Raises
    `RuntimeError` if no dense contestant gives the right result.
    """
    checked = {contestant.name: _status(contestant) for contestant in contestants}
    right = {c.name: c for c in contestants if checked[c.name][0] == "ok"}
    dense = [name for name, contestant in right.items() if contestant.structure == DENSE]
    if not dense:
        raise RuntimeError(f"no dense result is right, so nothing to compare with: {checked}")
    timings = interleaved({name: c.call for name, c in right.items()}, rounds)
    best = min((timings[name] for name in dense), key=lambda timing: timing.median)
    return [
        {
            **facts,
            "structure": contestant.structure,
            "mode": contestant.mode,
            **contestant.extra,
            **_result(checked[contestant.name], timings.get(contestant.name), best),
        }
        for contestant in contestants
    ]


def _status(contestant: Contestant) -> tuple[str, float | None, str]:
    """ "ok", "wrong" or "does not run", the error and the reason."""
    try:
        error = contestant.check()
    except DoesNotRun as reason:
        return "does not run", None, str(reason)
    return ("ok" if error <= 1 else "wrong"), error, ""


def _result(status: tuple[str, float | None, str], own: Timing | None, best: Timing) -> Row:
    word, error, reason = status
    row: Row = {"status": word, "error": None if error is None else f"{error:.2g}"}
    if own is None:
        empty = dict.fromkeys(
            ("microseconds", "low_us", "high_us", "ratio", "ratio_low", "ratio_high", "rounds")
        )
        return {**row, **empty, "reason": reason}
    low, high = own.quartiles
    ratio = Ratio.of(best, own)
    return {
        **row,
        "microseconds": round(own.median * 1e6, 2),
        "low_us": round(low * 1e6, 2),
        "high_us": round(high * 1e6, 2),
        "ratio": round(ratio.value, 3),
        "ratio_low": round(ratio.low, 3),
        "ratio_high": round(ratio.high, 3),
        "rounds": len(own.rounds),
        "reason": reason,
    }
