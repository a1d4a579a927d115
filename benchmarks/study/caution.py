"""`python -m benchmarks.study.caution`: what moves without caution do for two layers.

Learned permutations of `teacher-mlp` hardly move, because a move must gain several standard
deviations of what chance adds to its score. Here they are trained with less of that, and with none;
rows go to `benchmarks/results/study/caution.csv`. `--report` only reads the file.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev
from unittest.mock import patch

from tqdm import tqdm

from benchmarks.machine import describe
from benchmarks.results_file import RESULTS
from benchmarks.study import results
from benchmarks.study.runs import Run
from benchmarks.study.training import train
from padst_fx.dst import assignment
from padst_fx.tables import render

CAUTIONS = (assignment.CAUTION, 1.0, 0.0)
SEEDS = range(5)
RUN = Run("teacher-mlp", "Diag()", "learned", "rigl", 0.9, 0, 2000, 0.01, 160, delta_t=50)


def main() -> None:
    """Train all and write the rows anew, unless asked for the report alone; print a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.study.caution", description=__doc__)
    parser.add_argument("--report", action="store_true", help="only the table")
    path = RESULTS / "study" / "caution.csv"
    if not parser.parse_args().report:
        train_all(path)
    print(text(path))


def train_all(path: Path) -> None:
    """Write the rows of all runs, which share this process and so have no peak memory each."""
    path.unlink(missing_ok=True)
    for caution, seed in tqdm([(caution, seed) for caution in CAUTIONS for seed in SEEDS]):
        with patch.object(assignment, "CAUTION", caution):
            row = train(replace(RUN, seed=seed))
        del row["peak_mib"]
        results.add(path, {"caution": caution, **row, **describe()})


def text(path: Path) -> str:
    """The table of a result file."""
    found: dict[str, list[results.Row]] = defaultdict(list)
    for row in results.read(path):
        found[row["caution"]].append(row)
    rows = []
    for caution, group in found.items():
        errors = [float(row["value"]) for row in group]
        moved = "; ".join(row["moved"] for row in group)
        rows.append([caution, f"{mean(errors):.4g} ± {stdev(errors):.2g}", moved])
    columns = ["standard deviations a move must gain", "relative error", "moved, by layer and seed"]
    return render("teacher-mlp, Diag(), learned, 90 %", columns, rows)


if __name__ == "__main__":
    main()
