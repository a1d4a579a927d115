"""What a first use costs, each in a process of its own: importing, building, compiling.

Every process has empty caches of its own, but for the later loads, which find what was built.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import plots
from benchmarks.measured import DENSE
from benchmarks.settings import Settings
from benchmarks.table import Row, Table
from benchmarks.timing import quartiles
from padst_fx.kernels.native.build import CACHE_VARIABLE

MOST_ROUNDS, QUICK_ROUNDS = 5, 1
COMPILED = ("Diag()", "Diag(width=16)", "Block(16)", "NM(1, 10, tile=16)")

IMPORT = """
import time, torch
start = time.perf_counter()
import padst_fx
print(time.perf_counter() - start)
"""
FIRST_CALL = """
import time, torch, padst_fx
layer, x = padst_fx.SparseLinear(64, 64, "diag", 0.9), torch.randn(4, 64)
start = time.perf_counter()
layer(x)
print(time.perf_counter() - start)
"""
COMPILE = """
import time, torch, padst_fx
from benchmarks.models import vit_b16
from benchmarks.structures import SPARSITY, STRUCTURES
name, layers = {name!r}, {layers}
model, x = vit_b16(layers).eval(), torch.randn(1, 3, 224, 224)
if name in STRUCTURES:
    model = padst_fx.sparsify(model, STRUCTURES[name], SPARSITY, permutation="identity")
with torch.no_grad():
    model(x)
    start = time.perf_counter()
    backend = "padst" if name in STRUCTURES else "inductor"
    torch.compile(model, backend=backend, fullgraph=True)(x)
    print(time.perf_counter() - start)
"""


def seconds(script: str, caches: Path, kernels: Path | None) -> float:
    """What a script prints, run in a new process whose caches are in `caches`.

    `kernels` is where built kernels are kept, None for where they always are.
    """
    process = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, **_folders(caches, kernels)},
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=True,
    )
    return float(process.stdout.split()[-1])


def _folders(caches: Path, kernels: Path | None) -> Mapping[str, str]:
    names = {"TORCHINDUCTOR_CACHE_DIR": "inductor", "TRITON_CACHE_DIR": "triton"}
    folders = {variable: str(caches / name) for variable, name in names.items()}
    return folders if kernels is None else {**folders, CACHE_VARIABLE: str(kernels)}


def measure(settings: Settings) -> dict[tuple[str, str], list[float]]:
    """Seconds by (what, model), one number a round; the models take turns.

    `quick` builds nothing, as the kernels are there, and compiles only what is asked for. A round
    takes minutes, so there are `MOST_ROUNDS` of them at most.
    """
    models = settings.choose(COMPILED, ())
    times: dict[tuple[str, str], list[float]] = {}
    for _ in range(QUICK_ROUNDS if settings.quick else min(settings.rounds, MOST_ROUNDS)):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            kernels = None if settings.quick else folder / "kernels"
            for number, (what, model, script) in enumerate(_scripts(models, settings)):
                spent = seconds(script, folder / str(number), kernels)
                times.setdefault((what, model), []).append(spent)
    return times


def _scripts(models: Sequence[str], settings: Settings) -> Iterator[tuple[str, str, str]]:
    """What is measured, for which model, and by which script; in this order."""
    yield "import padst_fx", "", IMPORT
    if not settings.quick:
        yield "first call of an op: build and load", "", FIRST_CALL
    yield "first call of an op, later: load", "", FIRST_CALL
    for model in (DENSE, *models) if models else ():
        script = COMPILE.format(name=model, layers=settings.layers)
        yield "first compile of ViT-B/16", model, script


def run(settings: Settings) -> Table:
    """Measure all of it."""
    rows = rows_of(measure(settings))
    return Table(
        name="cold_start",
        title="cold start: seconds, and the first compile against the dense model's",
        rows=rows,
        shown=_shown(rows),
        draw=partial(_draw, rows),
    )


def rows_of(times: Mapping[tuple[str, str], list[float]]) -> list[Row]:
    """Medians and quartiles; compiles as multiples of the dense one of the same round."""
    rows: list[Row] = []
    for (what, model), spent in times.items():
        low, high = quartiles(spent)
        dense = times.get((what, DENSE))
        multiples = [a / b for a, b in zip(spent, dense, strict=True)] if dense else None
        rows.append(
            {
                "what": what,
                "structure": model,
                "seconds": round(statistics.median(spent), 4),
                "low": round(low, 4),
                "high": round(high, 4),
                "of_dense": round(statistics.median(multiples), 3) if multiples else None,
                "of_dense_low": round(quartiles(multiples)[0], 3) if multiples else None,
                "of_dense_high": round(quartiles(multiples)[1], 3) if multiples else None,
                "rounds": len(spent),
            }
        )
    return rows


def _shown(rows: list[Row]) -> tuple[list[str], list[list[str]]]:
    return ["what", "model", "seconds", "quartiles", "of dense"], [
        [
            row["what"],
            row["structure"],
            f"{row['seconds']:,.3f}",
            f"{row['low']:,.3f} to {row['high']:,.3f}",
            "" if row["of_dense"] is None else f"{row['of_dense']:.2f}",
        ]
        for row in rows
    ]


def _draw(rows: list[Row]) -> Any:
    mine = [
        {
            "structure": row["structure"],
            "ratio": row["of_dense"],
            "ratio_low": row["of_dense_low"],
            "ratio_high": row["of_dense_high"],
        }
        for row in rows
        if row["of_dense"] is not None and row["structure"] != DENSE
    ]
    return plots.bars([("first compile of ViT-B/16", mine)], "time, in compiles of the dense model")
