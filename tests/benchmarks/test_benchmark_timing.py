"""The benchmarks' clockwork: turns, medians, ratios, and no speed for a wrong result."""

from __future__ import annotations

import pytest

from benchmarks import measured, timing
from benchmarks.measured import Contestant, DoesNotRun, measure
from benchmarks.table import noise_note, ratio_cell
from benchmarks.timing import Ratio, Timing, interleaved


class Clock:
    """Time that passes only when something is called; the n-th round takes n times as long."""

    def __init__(self) -> None:
        self.now = 0.0
        self.order: list[str] = []

    def work(self, name: str, seconds: float):
        def call() -> None:
            self.order.append(name)
            self.now += seconds

        return call


@pytest.fixture
def clock(monkeypatch) -> Clock:
    fake = Clock()
    monkeypatch.setattr(timing.time, "perf_counter", lambda: fake.now)
    return fake


def test_every_round_calls_everything_as_often(clock):
    calls = {"a": clock.work("a", 1.0), "b": clock.work("b", 3.0)}
    times = interleaved(calls, rounds=5, span=12.0)
    assert times["a"].rounds == (1.0,) * 5
    assert times["b"].rounds == (3.0,) * 5
    counted = clock.order[4:]
    assert len(counted) == 5 * 3 * 2
    passes = [tuple(counted[i : i + 2]) for i in range(0, len(counted), 2)]
    assert set(passes) == {("a", "b"), ("b", "a")}


def test_a_slow_pass_still_happens_once_a_round(clock):
    times = interleaved({"a": clock.work("a", 100.0)}, rounds=2, span=1.0)
    assert times["a"].rounds == (100.0, 100.0)
    assert len(clock.order) == 2 + 2


def test_medians_and_quartiles_by_hand():
    timed = Timing((1.0, 2.0, 3.0, 4.0, 100.0))
    assert (timed.median, timed.quartiles, timed.spread) == (3.0, (2.0, 4.0), pytest.approx(2 / 3))
    assert Timing((2.0,)).quartiles == (2.0, 2.0)


def test_a_ratio_is_of_medians_and_its_quartiles_are_over_rounds():
    dense, own = Timing((10.0, 12.0, 14.0)), Timing((5.0, 4.0, 2.0))
    ratio = Ratio.of(dense, own)
    assert ratio.value == 3.0
    # Rounds: 2, 3 and 7.
    assert (ratio.low, ratio.high) == (2.5, 5.0)


def contestant(clock: Clock, name: str, mode: str, seconds: float, error: float = 0.0):
    return Contestant(name, mode, clock.work(f"{name} {mode}", seconds), lambda: error)


def test_the_best_dense_contestant_is_the_baseline(clock):
    entries = [
        contestant(clock, "dense", "eager", 8.0),
        contestant(clock, "dense", "compiled", 6.0),
        contestant(clock, "sparse", "eager", 2.0),
    ]
    rows = measure(entries, 3, {"part": "forward"})
    assert [row["ratio"] for row in rows] == [0.75, 1.0, 3.0]
    assert [row["microseconds"] for row in rows] == [8e6, 6e6, 2e6]
    assert all(row["part"] == "forward" and row["status"] == "ok" for row in rows)
    assert ratio_cell(rows[2]) == "3.00 ±0.00"


@pytest.mark.parametrize("error", [1.01, float("inf")])
def test_a_wrong_result_has_no_speed(clock, error):
    entries = [
        contestant(clock, "dense", "eager", 8.0),
        contestant(clock, "sparse", "eager", 2.0, error),
    ]
    _, wrong = measure(entries, 3, {})
    assert wrong["status"] == "wrong"
    assert wrong["ratio"] is None and wrong["microseconds"] is None
    assert "sparse eager" not in clock.order
    assert ratio_cell(wrong) == "wrong"


def test_not_a_number_is_wrong(clock):
    entries = [
        contestant(clock, "dense", "eager", 8.0),
        contestant(clock, "sparse", "eager", 2.0, float("nan")),
    ]
    assert measure(entries, 3, {})[1]["status"] == "wrong"


def test_what_does_not_run_says_why(clock):
    def refuse() -> float:
        raise DoesNotRun("only on Sundays")

    other = Contestant("torch 2:4", "eager", clock.work("never", 1.0), refuse)
    _, row = measure([contestant(clock, "dense", "eager", 8.0), other], 3, {})
    assert (row["status"], row["reason"], row["ratio"]) == ("does not run", "only on Sundays", None)


def test_without_a_right_dense_result_there_is_no_table(clock):
    with pytest.raises(RuntimeError, match="no dense result is right"):
        measure([contestant(clock, "dense", "eager", 8.0, 2.0)], 3, {})


def test_noise_is_told():
    def row(low: float, high: float) -> dict[str, object]:
        return {
            "structure": measured.DENSE, "status": "ok", "microseconds": 100.0,
            "low_us": low, "high_us": high,
        }  # fmt: skip

    assert noise_note([row(99, 101), row(98, 102), row(95, 105)]) == (
        "spread of the dense baseline: 4% typically, 10% at most"
    )
    assert "not idle" in noise_note([row(80, 120)])
