"""A measured table: its rows, how it is printed and how it is drawn."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from padst_fx.tables import render

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Row = dict[str, Any]


@dataclass(frozen=True)
class Table:
    """`rows` have the same keys and become the CSV file `name`.csv.

    `shown` is what is printed: column titles and rows of text. `notes` are sentences under it.
    `draw` makes the picture `name`.png.
    """

    name: str
    title: str
    rows: Sequence[Row]
    shown: tuple[Sequence[str], Sequence[Sequence[str]]]
    draw: Callable[[], Figure] | None = None
    notes: Sequence[str] = ()

    @property
    def wrong(self) -> int:
        """How many results failed their check."""
        return sum(row.get("status") == "wrong" for row in self.rows)

    def __str__(self) -> str:
        columns, rows = self.shown
        return "\n".join((render(self.title, columns, rows), *self.notes))


def ratio_cell(row: Mapping[str, Any] | None) -> str:
    """A ratio with half the distance of its quartiles, or why there is none."""
    if row is None:
        return ""
    if row["status"] != "ok":
        return str(row["status"])
    half = (row["ratio_high"] - row["ratio_low"]) / 2
    return f"{row['ratio']:.2f} ±{half:.2f}"


def noise_note(rows: Sequence[Row]) -> str:
    """How far the dense baseline itself spread: what smaller differences mean nothing."""
    spreads = sorted(
        (row["high_us"] - row["low_us"]) / row["microseconds"]
        for row in rows
        if row["structure"] == "dense" and row["status"] == "ok"
    )
    middle, worst = spreads[len(spreads) // 2], spreads[-1]
    warning = "; the machine was not idle: measure again" if middle > NOISY else ""
    return f"spread of the dense baseline: {middle:.0%} typically, {worst:.0%} at most{warning}"


NOISY = 0.10
