"""The result file of the study: CSV, one row a run, added to as runs end."""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

from benchmarks.study.runs import Run

Row = dict[str, str]


def read(path: Path) -> list[Row]:
    """All rows; none where there is no file."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def run_of(row: Row) -> Run:
    """The run that a row is of."""
    kinds: dict[str, Callable[[str], Any]] = {
        "float": float,
        "int": int,
        "str": str,
        "float | None": lambda text: float(text) if text else None,
        "bool": lambda text: text == "True",
    }
    return Run(**{f.name: kinds[str(f.type)](row[f.name]) for f in fields(Run)})


def add(path: Path, row: dict[str, Any]) -> None:
    """Append a row; the first one writes the header."""
    path.parent.mkdir(parents=True, exist_ok=True)
    is_new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, list(row), lineterminator="\n")
        if is_new:
            writer.writeheader()
        writer.writerow(row)
