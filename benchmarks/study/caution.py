"""`python -m benchmarks.study.caution`: what moves without caution do for two layers.

Learned permutations of `teacher-mlp` hardly move, because a move must gain several standard
deviations of what chance adds to its score. Here they are trained with less of that, and with none;
rows go to `benchmarks/results/study/caution.csv`.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
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
    """Train all, write the rows anew and print a table."""
    path = RESULTS / "study" / "caution.csv"
    path.unlink(missing_ok=True)
    errors: dict[float, list[float]] = defaultdict(list)
    moved: dict[float, list[str]] = defaultdict(list)
    for caution, seed in tqdm([(caution, seed) for caution in CAUTIONS for seed in SEEDS]):
        with patch.object(assignment, "CAUTION", caution):
            row = train(replace(RUN, seed=seed))
        results.add(path, {"caution": caution, **row, **describe()})
        errors[caution].append(row["value"])
        moved[caution].append(row["moved"])
    rows = [
        [f"{caution:g}", f"{mean(found):.4g} ± {stdev(found):.2g}", "; ".join(moved[caution])]
        for caution, found in errors.items()
    ]
    columns = ["standard deviations a move must gain", "relative error", "moved, by layer and seed"]
    print(render("teacher-mlp, Diag(), learned, 90 %", columns, rows))


if __name__ == "__main__":
    main()
