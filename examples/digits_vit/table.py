"""The comparison as a table, and as JSON for other programs."""

from __future__ import annotations

import json
import platform
import statistics
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from examples.digits_vit.comparison import Result, time_ratio

COLUMNS = (
    ("", "left"),
    ("test accuracy", "right"),
    ("projections:\nparameters", "right"),
    ("\noptimizer bytes", "right"),
    ("whole model:\nparameters", "right"),
    ("\noptimizer bytes", "right"),
    ("step time\n(dense = 1)", "right"),
    ("compiled\ngraphs", "right"),
)


def show(results: Sequence[Result], console: Console) -> None:
    """Print one row per contestant; the first one is the dense model."""
    seeds = len(results[0].accuracies)
    table = Table(title=f"Handwritten digits, 90 % sparse, {seeds} seed(s)")
    for heading, justify in COLUMNS:
        table.add_column(heading, justify=justify, no_wrap=True)  # type: ignore[arg-type]
    for result in results:
        table.add_row(
            result.name,
            _accuracy(result.accuracies),
            f"{result.projections.parameters:,}",
            f"{result.projections.optimizer_bytes:,}",
            f"{result.everything.parameters:,}",
            f"{result.everything.optimizer_bytes:,}",
            f"{time_ratio(result, results[0]):.2f}",
            str(result.graphs),
        )
    console.print(table)
    console.print(
        "RigL is unstructured: any weights may stay; Diag and Block choose by RigL's rule too. "
        "Accuracy: mean and sample standard deviation over seeds. Step time: median over "
        f"{len(results[0].step_seconds)} rounds in which all take turns; below 1 is faster than "
        "dense. Graphs: one plain step and, for mask updates, one scoring step."
    )


def write(results: Sequence[Result], path: Path) -> None:
    """Every number of the table, and the single accuracies and medians it comes from."""
    rows = [
        {
            "name": result.name,
            "accuracies": result.accuracies,
            "projection_parameters": result.projections.parameters,
            "projection_optimizer_bytes": result.projections.optimizer_bytes,
            "parameters": result.everything.parameters,
            "optimizer_bytes": result.everything.optimizer_bytes,
            "step_seconds": statistics.median(result.step_seconds),
            "step_time_ratio": time_ratio(result, results[0]),
            "graphs": result.graphs,
        }
        for result in results
    ]
    machine = {"torch": torch.__version__, "machine": platform.machine()}
    path.write_text(json.dumps({**machine, "results": rows}, indent=2) + "\n")


def _accuracy(accuracies: Sequence[float]) -> str:
    mean = f"{statistics.mean(accuracies):.2%}"
    if len(accuracies) == 1:
        return mean
    return f"{mean} +- {statistics.stdev(accuracies):.2%}"
