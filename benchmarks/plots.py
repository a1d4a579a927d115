"""Pictures of the tables: how many times faster than dense, with the line where both are even."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from benchmarks.table import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DENSE = "dense"
BREAK_EVEN: dict[str, Any] = {"color": "black", "linewidth": 1.2, "linestyle": "--", "zorder": 3}


def ratio_against_tokens(rows: Sequence[Row], parts: Sequence[str]) -> Figure:
    """A panel per part and shape; a line per structure, the better of its modes."""
    import matplotlib.pyplot as plt

    shapes = list(dict.fromkeys((row["out"], row["in"]) for row in rows))
    names = list(dict.fromkeys(row["structure"] for row in rows if row["structure"] != DENSE))
    figure, axes = plt.subplots(
        len(parts), len(shapes), figsize=(3.4 * len(shapes) + 2, 2.7 * len(parts)),
        sharex=True, sharey="row", squeeze=False, layout="constrained",
    )  # fmt: skip
    for part, line in zip(parts, axes, strict=True):
        for shape, panel in zip(shapes, line, strict=True):
            mine = [row for row in rows if _place(row) == (part, *shape)]
            _panel(panel, mine, names)
            panel.set_title(f"{part}, {shape[0]} x {shape[1]}", fontsize=9)
        line[0].set_ylabel("dense / sparse time")
    for panel in axes[-1]:
        panel.set_xlabel("tokens (M)")
    entries: dict[str, object] = {}
    for panel in axes.flat:
        handles, labels = panel.get_legend_handles_labels()
        entries |= dict(zip(labels, handles, strict=True))
    figure.legend(
        list(entries.values()), list(entries), loc="outside right upper", fontsize=8, frameon=False
    )  # type: ignore[call-overload]
    return figure


def _place(row: Row) -> tuple[str, int, int]:
    return row["part"], row["out"], row["in"]


def _panel(panel: Axes, rows: Sequence[Row], names: Sequence[str]) -> None:
    panel.set_xscale("log", base=2)
    panel.set_yscale("log", base=2)
    panel.axhline(1, label="break-even", **BREAK_EVEN)
    for number, name in enumerate(names):
        best: dict[int, Row] = {}
        for row in rows:
            if row["structure"] == name and row["ratio"] is not None:
                tokens = row["tokens"]
                best[tokens] = max(best.get(tokens, row), row, key=lambda r: float(r["ratio"]))
        if best:
            _line(panel, dict(sorted(best.items())), name, number)
    tokens = sorted({row["tokens"] for row in rows})
    panel.set_xticks(tokens, [str(count) for count in tokens], minor=False)
    panel.minorticks_off()
    panel.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    panel.grid(alpha=0.25)


def _line(panel: Axes, points: dict[int, Row], name: str, number: int) -> None:
    """A median line with bars from quartile to quartile."""
    middle = [row["ratio"] for row in points.values()]
    below = [max(0.0, row["ratio"] - row["ratio_low"]) for row in points.values()]
    above = [max(0.0, row["ratio_high"] - row["ratio"]) for row in points.values()]
    foreign = name.startswith(("torch", DENSE))
    panel.errorbar(
        list(points), middle, yerr=[below, above], label=name,
        color="0.5" if foreign else f"C{number % 10}",
        linestyle=":" if foreign else "-", marker="osv^D"[number % 5],
        markersize=3.5, linewidth=1.3, capsize=2,
    )  # fmt: skip


def bars(panels: Sequence[tuple[str, Sequence[Row]]], title: str) -> Figure:
    """A panel per part with a bar per structure: ratio, quartiles and the break-even line."""
    import matplotlib.pyplot as plt

    height = 1.2 + 0.26 * sum(len(mine) + 2 for _, mine in panels)
    figure, axes = plt.subplots(
        len(panels), 1, figsize=(8, height), squeeze=False, sharex=True, layout="constrained",
        height_ratios=[len(mine) + 2 for _, mine in panels],
    )  # fmt: skip
    for panel, (name, mine) in zip(axes[:, 0], panels, strict=True):
        labels = [row["structure"] for row in mine]
        values = [row["ratio"] for row in mine]
        errors = [
            [max(0.0, row["ratio"] - row["ratio_low"]) for row in mine],
            [max(0.0, row["ratio_high"] - row["ratio"]) for row in mine],
        ]
        panel.barh(labels, values, xerr=errors, height=0.7, capsize=2, color="C0", zorder=2)
        panel.axvline(1, label="break-even", **BREAK_EVEN)
        panel.invert_yaxis()
        panel.set_title(name, fontsize=9, loc="left")
        panel.tick_params(labelsize=8)
        panel.grid(axis="x", alpha=0.25)
    axes[0, 0].legend(loc="lower right", fontsize=8)
    axes[-1, 0].set_xlabel(title)
    return figure
