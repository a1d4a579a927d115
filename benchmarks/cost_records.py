"""The kernels' tables as records of the package's cost model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.machine import commit
from benchmarks.measured import DENSE
from benchmarks.structures import SPARSITY, STRUCTURES
from benchmarks.table import Row
from padst_fx.cost import Work
from padst_fx.cost.devices import device_of
from padst_fx.cost.records import MEASUREMENTS, Record, write_records


def records(rows: Sequence[Row]) -> list[Record]:
    """A record for every right forward, eager, of a dense layer or a structure."""
    device = device_of(torch.device("cpu"))
    wanted = [row for row in rows if (row["part"], row["mode"]) == ("forward", "eager")]
    found = []
    for row in wanted:
        work = _work(row)
        if work is not None and row["status"] == "ok":
            found.append(
                Record(
                    device=device.name,
                    kernels=device.kernels,
                    threads=device.threads,
                    dtype=row.get("dtype", "float32"),
                    structure=work.structure,
                    out_features=work.out_features,
                    in_features=work.in_features,
                    nonzeros=work.nonzeros,
                    tokens=row["tokens"],
                    microseconds=row["microseconds"],
                    versions=f"torch {torch.__version__}, commit {commit()}",
                )
            )
    return found


def _work(row: Row) -> Work | None:
    shape = (row["out"], row["in"])
    if row["structure"] == DENSE:
        return Work.dense(*shape)
    structure = STRUCTURES.get(row["structure"])
    return None if structure is None else Work.of(structure.bind(*shape, SPARSITY))


def write(rows: Sequence[Row], folder: Path = MEASUREMENTS) -> list[Path]:
    """Put the records of a table into the package's measurements; returns the files."""
    return write_records(records(rows), folder)
