"""Tables and pictures of a result file, made from the file alone."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any

from benchmarks import results_file
from benchmarks.study import results
from benchmarks.study.results import Row
from benchmarks.study.runs import DENSE, Run
from benchmarks.study.tasks import TASKS
from padst_fx.tables import render

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Kind = tuple[str, str, str, str]  # structure, method, permutation, other settings than usual

CONFIDENCE = 0.95
BASELINE = ("Unstructured()", "rigl", "identity")
SECOND_BASELINE = ("Unstructured()", "set", "identity")
CAPTION = (
    "Mean ± standard deviation over seeds. In comparisons ± is half of the 95 % interval of "
    "differences paired by seed."
)
# Settings that a run need not have, and how a table calls them.
VARIED = {
    "delta_t": "delta_t", "drop_fraction": "drop", "distribution": "", "harden_at": "hardened at",
    "permuted": "permuted", "soft_weight": "penalty", "soft_rate": "matrices' rate",
    "compiled": "compiled",
}  # fmt: skip


@dataclass(frozen=True)
class Group:
    """Runs that differ in their seeds alone: values by seed, and the first run's fields; the shares
    of positions moved, per layer, of each run that has permutations."""

    run: Run
    values: dict[int, float]
    moved: tuple[tuple[float, ...], ...] = ()

    @property
    def cell(self) -> str:
        """Mean and sample standard deviation."""
        numbers = list(self.values.values())
        if len(numbers) == 1:
            return _number(numbers[0])
        return f"{_number(mean(numbers))} ± {_number(stdev(numbers))}"

    @property
    def movement(self) -> str:
        """The mean share moved of each layer, where any moved."""
        means = [mean(shares) for shares in zip(*self.moved, strict=True)]
        return " ".join(f"{share:.2f}" for share in means) if any(means) else ""

    @property
    def kind(self) -> Kind:
        """What its table compares."""
        run = self.run
        return run.structure, run.method, run.permutation, _variant(run)


def groups(rows: Iterable[Row]) -> list[Group]:
    """Rows by everything but their seed, in the order of the file."""
    values: dict[str, dict[int, float]] = defaultdict(dict)
    moved: dict[str, list[tuple[float, ...]]] = defaultdict(list)
    first: dict[str, Run] = {}
    for row in rows:
        run = results.run_of(row)
        key = replace(run, seed=0).key
        first.setdefault(key, run)
        values[key][run.seed] = float(row["value"])
        if row.get("moved"):
            moved[key].append(tuple(map(float, row["moved"].split())))
    return [Group(run, values[key], tuple(moved[key])) for key, run in first.items()]


def difference(one: Group, other: Group) -> tuple[float, float] | None:
    """The mean of `one` less `other` over the seeds both have, and half of its 95 % interval.

    Differences are paired by seed (Student's t). None for fewer than two seeds in common.
    """
    seeds = sorted(one.values.keys() & other.values.keys())
    if len(seeds) < 2:
        return None
    differences = [one.values[seed] - other.values[seed] for seed in seeds]
    return mean(differences), _half_interval(differences)


def _half_interval(numbers: list[float]) -> float:
    from scipy.stats import t

    if len(numbers) < 2:
        return float("inf")
    quantile = float(t.ppf((1 + CONFIDENCE) / 2, len(numbers) - 1))
    return quantile * stdev(numbers) / len(numbers) ** 0.5


def closed(group: Group, without: Group, baseline: Group) -> tuple[float, float] | None:
    """The share of the distance from `without` to the baseline that the group has covered, over the
    seeds that all three have, and half of its 95 % interval.

    The interval is that of what the share leaves unexplained of each seed, as if the distance were
    known. None where the baseline is not better by more than the interval of the difference.
    """
    apart = difference(baseline, without)
    sign = 1 if TASKS[baseline.run.task].higher_is_better else -1
    if apart is None or sign * apart[0] <= apart[1]:
        return None
    seeds = sorted(group.values.keys() & without.values.keys() & baseline.values.keys())
    covered = [group.values[seed] - without.values[seed] for seed in seeds]
    distances = [baseline.values[seed] - without.values[seed] for seed in seeds]
    share = mean(covered) / mean(distances)
    left = [part - share * whole for part, whole in zip(covered, distances, strict=True)]
    return share, _half_interval(left) / abs(mean(distances))


def text(path: Path) -> str:
    """All tables as plain text."""
    rows = results.read(path)
    tables = [CAPTION]
    for place, found in _by_place(groups(rows)).items():
        tables.append(_table(place, found))
    return "\n\n".join(tables)


Place = tuple[str, float, int, int, str]  # task, sparsity, size, steps, sparse layers


def _by_place(found: list[Group]) -> dict[Place, list[Group]]:
    """Groups that one table compares; dense ones stand in every table of their task and size."""
    places: dict[Place, list[Group]] = defaultdict(list)
    for group in found:
        if group.run.structure != DENSE:
            places[_place(group.run)].append(group)
    for group in found:
        if group.run.structure == DENSE:
            task, _, *size, _ = _place(group.run)
            for place, members in places.items():
                if (place[0], *place[2:4]) == (task, *size):
                    members.insert(0, group)
    return places


def _place(run: Run) -> Place:
    return run.task, run.sparsity, run.size, run.steps, run.layers


def _variant(run: Run) -> str:
    """The settings that differ from those of a run that names none."""
    usual = {field.name: field.default for field in fields(Run)}
    chosen = {name: getattr(run, name) for name in VARIED}
    words = (f"{VARIED[name]} {value}" for name, value in chosen.items() if value != usual[name])
    return ", ".join(word.strip() for word in words)


def _table(place: Place, found: list[Group]) -> str:
    task, sparsity, size, steps, layers = place
    compared = [_compared(group, _single(found)) for group in found]
    # A column that a table has nothing for is left out.
    columns = [name for name in compared[0] if any(row[name] for row in compared)]
    better = "higher" if TASKS[task].higher_is_better else "lower"
    return render(
        f"{task}, {sparsity:.0%} sparse: {TASKS[task].metric} ({better} is better); size {size}, "
        f"{steps} steps" + ("" if layers == "*" else f", only {layers}"),
        columns,
        [[row[name] for name in columns] for row in compared],
    )


def _single(found: list[Group]) -> dict[Kind, Group]:
    """Groups by their kinds; of several learning rates of a kind none is one to compare with."""
    counts = Counter(group.kind for group in found)
    return {group.kind: group for group in found if counts[group.kind] == 1}


def _compared(group: Group, single: dict[Kind, Group]) -> dict[str, str]:
    """A group's row, by column. It is compared with groups of its own settings, or else of usual
    ones."""
    structure, method, permutation, variant = group.kind

    def other(structure: str, method: str, permutation: str) -> Group | None:
        usual = single.get((structure, method, permutation, ""))
        return single.get((structure, method, permutation, variant), usual)

    rigl, second = other(*BASELINE), other(*SECOND_BASELINE)
    without = other(structure, method, "identity")
    fixed = other(structure, method, "random")
    return {
        "structure": structure,
        "method": method,
        "permutation": permutation,
        "settings": variant,
        "rate": f"{group.run.learning_rate:g}",
        "seeds": str(len(group.values)),
        TASKS[group.run.task].metric: group.cell,
        "less dense": _interval(group, other(DENSE, "", "")),
        "less RigL's": _interval(group, rigl),
        "less SET's": _interval(group, second),
        "less identity's": _interval(group, without),
        "less usual settings'": _interval(group, single.get((*group.kind[:3], ""))),
        "less random's": _interval(group, fixed if permutation == "learned" else None),
        "gap to RigL closed": _share(group, without, rigl),
        "to SET": "" if group is rigl else _share(group, without, second),
        "moved, by layer": group.movement,
    }


def _interval(group: Group, other: Group | None) -> str:
    if other is None or other is group:
        return ""
    found = difference(group, other)
    return "" if found is None else f"{found[0]:+.3g} ± {found[1]:.2g}"


def _share(group: Group, without: Group | None, baseline: Group | None) -> str:
    if without is None or baseline is None or group is without or group is baseline:
        return ""
    found = closed(group, without, baseline)
    if found is None:
        return "no gap"
    share, half = found
    return f"{share:.0%}" if half == float("inf") else f"{share:.0%} ± {100 * half:.0f}"


def _number(value: float) -> str:
    return f"{value:.4g}"


def draw(path: Path) -> Path | None:
    """A panel per task, the metric against sparsity, a line per structure and permutation.

    Returns the picture's path, None where matplotlib is not installed.
    """
    return results_file.save(partial(_figure, path), path.with_suffix(".png"))


def _figure(path: Path) -> Figure:
    import matplotlib.pyplot as plt

    found = groups(results.read(path))
    tasks = list(dict.fromkeys(group.run.task for group in found))
    figure, axes = plt.subplots(
        1, len(tasks), figsize=(4.6 * len(tasks), 3.8), squeeze=False, layout="constrained"
    )
    for task, panel in zip(tasks, axes[0], strict=True):
        _panel(panel, [group for group in found if group.run.task == task])
        panel.set_title(task, fontsize=10)
        panel.set_ylabel(TASKS[task].metric)
        panel.set_xlabel("sparsity")
    return figure


def _panel(panel: Any, found: list[Group]) -> None:
    lines: dict[tuple[Kind, int], list[Group]] = defaultdict(list)
    for group in found:
        if group.run.structure == DENSE:
            panel.axhline(mean(group.values.values()), color="black", linewidth=1, label=DENSE)
        else:
            lines[group.kind, group.run.size].append(group)
    for (kind, size), members in lines.items():
        members.sort(key=lambda group: group.run.sparsity)
        numbers = [list(group.values.values()) for group in members]
        spread = [stdev(values) if len(values) > 1 else 0.0 for values in numbers]
        panel.errorbar(
            [group.run.sparsity for group in members], [mean(values) for values in numbers],
            yerr=spread, marker="o", markersize=3, linewidth=1, capsize=2,
            label=" ".join(word for word in (*kind, str(size)) if word),
        )  # fmt: skip
    panel.legend(fontsize=6, frameon=False)
