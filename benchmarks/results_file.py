"""Result files: CSV, one row a measurement, the machine in every row."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.machine import RESULTS, describe


def write(name: str, rows: Sequence[dict[str, Any]]) -> Path:
    """Write rows with the same keys to `benchmarks/results/<name>.csv`; returns the path."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.csv"
    machine = describe()
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*rows[0], *machine])
        writer.writeheader()
        writer.writerows({**row, **machine} for row in rows)
    return path
