"""Accuracy against time: a grid's result file joined with the one of its times."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any

from benchmarks import results_file
from benchmarks.study import results
from benchmarks.study.report import Group, groups
from benchmarks.study.runs import DENSE
from benchmarks.study.tasks import TASKS
from padst_fx.tables import render

if TYPE_CHECKING:
    from matplotlib.figure import Figure

AXES = {
    "step": "training step, time of dense",
    "latency": "inference, time of dense",
}


@dataclass(frozen=True)
class Point:
    """A kind of model: its metric over seeds, and its times as shares of dense time."""

    group: Group
    times: dict[str, float]
    spreads: dict[str, tuple[float, float]]

    @property
    def name(self) -> str:
        structure, method, permutation, variant = self.group.kind
        if structure == DENSE:
            return DENSE
        words = [structure.removesuffix("()"), method, permutation]
        words += [f"{self.group.run.sparsity:.0%}", variant]
        return " ".join(word for word in words if word not in ("rigl", "identity", ""))


def times_path(path: Path) -> Path:
    """Where the times of a result file are."""
    return path.with_name(f"{path.stem}_times.csv")


def points(path: Path) -> list[Point]:
    """All kinds of a result file that were timed, and the dense ones of their sizes."""
    rows = results.read(times_path(path))
    timed = {results.run_of(row).timed_as: row for row in rows}
    sizes = {(run.task, run.size) for run in map(results.run_of, rows)}
    return list(_points(groups(results.read(path)), timed, sizes))


def _points(
    found: list[Group], timed: dict[str, results.Row], sizes: set[tuple[str, int]]
) -> Iterator[Point]:
    for group in found:
        if group.run.structure == DENSE:
            if (group.run.task, group.run.size) in sizes:
                yield Point(group, dict.fromkeys(AXES, 1.0), dict.fromkeys(AXES, (1.0, 1.0)))
        elif (row := timed.get(group.run.timed_as)) is not None:
            yield Point(
                group,
                {axis: 1 / float(row[f"{axis}_ratio"]) for axis in AXES},
                {axis: _bounds(row, axis) for axis in AXES},
            )


def _bounds(row: results.Row, axis: str) -> tuple[float, float]:
    return 1 / float(row[f"{axis}_ratio_high"]), 1 / float(row[f"{axis}_ratio_low"])


def best(found: list[Point], axis: str) -> list[Point]:
    """The points that no other one beats in both the metric and the time on an axis."""
    return [point for point in found if not any(_beats(other, point, axis) for other in found)]


def _beats(one: Point, other: Point, axis: str) -> bool:
    sign = 1 if TASKS[one.group.run.task].higher_is_better else -1
    gain = sign * (mean(one.group.values.values()) - mean(other.group.values.values()))
    return gain >= 0 and one.times[axis] < other.times[axis]


def text(path: Path) -> str:
    """A table per task: metric and times, each kind in the order of the file."""
    found = points(path)
    return "\n\n".join(
        _table(task, [point for point in found if point.group.run.task == task])
        for task in dict.fromkeys(point.group.run.task for point in found)
    )


def _table(task: str, found: list[Point]) -> str:
    fronts = {axis: best(found, axis) for axis in AXES}
    rows = [
        [point.name, point.group.cell, *(_cell(point, axis, fronts[axis]) for axis in AXES)]
        for point in found
    ]
    return render(
        f"{task}: {TASKS[task].metric} against time (quartiles; * none is better and faster)",
        ["model", TASKS[task].metric, *AXES.values()],
        rows,
    )


def _cell(point: Point, axis: str, front: list[Point]) -> str:
    low, high = point.spreads[axis]
    mark = "*" if point in front else ""
    return f"{point.times[axis]:.2f} ({low:.2f}-{high:.2f}){mark}"


def draw(path: Path) -> Path | None:
    """A row per task, a panel per axis; the line joins what none beats.

    Returns the picture's path, None without times or where matplotlib is not installed.
    """
    if not (found := points(path)):
        return None
    return results_file.save(partial(_figure, found), path.with_name(f"{path.stem}_pareto.png"))


def _figure(found: list[Point]) -> Figure:
    import matplotlib.pyplot as plt

    tasks = list(dict.fromkeys(point.group.run.task for point in found))
    figure, axes = plt.subplots(
        len(tasks), len(AXES), figsize=(11, 4.2 * len(tasks)), squeeze=False, layout="constrained"
    )
    for task, panels in zip(tasks, axes, strict=True):
        own = [point for point in found if point.group.run.task == task]
        for axis, panel in zip(AXES, panels, strict=True):
            _panel(panel, own, axis)
            panel.set_ylabel(f"{task}: {TASKS[task].metric}")
            panel.set_xlabel(AXES[axis])
            panel.set_title("better: up and to the left", fontsize=8)
        panels[-1].legend(
            fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1.02, 0.5)
        )
    return figure


def _panel(panel: Any, found: list[Point], axis: str) -> None:
    structures = list(dict.fromkeys(point.group.run.structure for point in found))
    for point in found:
        run, values = point.group.run, list(point.group.values.values())
        low, high = point.spreads[axis]
        here = point.times[axis]
        panel.errorbar(
            here, mean(values), yerr=stdev(values) if len(values) > 1 else 0.0,
            xerr=[[max(0.0, here - low)], [max(0.0, high - here)]],
            marker=_MARKERS[run.permutation], color=f"C{structures.index(run.structure)}",
            markersize=6, linewidth=0.8, capsize=2, label=point.name,
        )  # fmt: skip
    front = best(found, axis)
    line = sorted((point.times[axis], mean(point.group.values.values())) for point in front)
    panel.plot(*zip(*line, strict=True), color="0.6", linewidth=1, zorder=0)
    if not TASKS[found[0].group.run.task].higher_is_better:
        panel.invert_yaxis()


_MARKERS = {"": "*", "identity": "o", "random": "s", "learned": "^", "soft": "D"}
