"""Result files: CSV, one row a measurement, the machine, versions and commit in every row."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.machine import describe
from benchmarks.table import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RESULTS = Path(__file__).parent / "results"


def write(name: str, rows: Sequence[dict[str, Any]], folder: Path = RESULTS) -> Path:
    """Write rows with the same keys to `<folder>/<name>.csv` anew; returns the path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.csv"
    machine = describe()
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*rows[0], *machine], lineterminator="\n")
        writer.writeheader()
        writer.writerows({**row, **machine} for row in rows)
    return path


def write_table(table: Table, folder: Path = RESULTS) -> list[Path]:
    """The table's CSV file and, where matplotlib is there, its picture; returns the paths."""
    paths = [write(table.name, table.rows, folder)]
    if table.draw is not None and (picture := save(table.draw, folder / f"{table.name}.png")):
        paths.append(picture)
    return paths


def save(draw: Callable[[], Figure], path: Path) -> Path | None:
    """Save what `draw` makes; returns the path, None where matplotlib is not installed."""
    try:
        import matplotlib
    except ModuleNotFoundError:
        return None
    matplotlib.use("Agg")
    draw().savefig(path, dpi=110)
    return path
