"""Result files: CSV, one row a measurement, the machine, versions and commit in every row."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.machine import describe
from benchmarks.table import Table

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
    try:
        import matplotlib
    except ModuleNotFoundError:
        return paths
    if table.draw is not None:
        matplotlib.use("Agg")
        path = folder / f"{table.name}.png"
        figure = table.draw()
        figure.savefig(path, dpi=110)
        paths.append(path)
    return paths
