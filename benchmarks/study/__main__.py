"""`python -m benchmarks.study [grid.json]`: train what is missing, then report.

Runs that have a row in the result file are not trained again, so a stopped grid goes on where it
was. `--report` only reads the file. Tables go to `<grid>.txt` beside it, pictures to
`<grid>.png` and, with `benchmarks.study.times`, `<grid>_pareto.png`.
"""

from __future__ import annotations

import argparse
import math
import os
from pathlib import Path

from benchmarks.results_file import RESULTS
from benchmarks.study import pareto, report, runner, runs

CONFIGS = Path(__file__).parent / "configs"


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.study", description=__doc__)
    parser.add_argument("grid", nargs="?", type=Path, default=CONFIGS / "default.json")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--device", default="cpu", help="cuda for a GPU; then --workers 1")
    parser.add_argument("--output", type=Path, help="default: benchmarks/results/study/<grid>.csv")
    parser.add_argument("--minutes", type=float, default=math.inf, help="start no run afterwards")
    parser.add_argument("--report", action="store_true", help="only tables and pictures")
    found = parser.parse_args(given)
    if found.workers < 1:
        parser.error(f"--workers must be at least 1, got {found.workers}")
    found.output = found.output or RESULTS / "study" / f"{found.grid.stem}.csv"
    return found


def main() -> None:
    """Train and report."""
    given = arguments()
    if not given.report:
        missing = runner.remaining(runs.read(given.grid), given.output)
        runner.train_all(missing, given.output, given.workers, given.minutes, given.device)
    tables = "\n\n".join(filter(None, (report.text(given.output), pareto.text(given.output))))
    print(tables)
    given.output.with_suffix(".txt").write_text(tables + "\n")
    report.draw(given.output)
    pareto.draw(given.output)


if __name__ == "__main__":
    main()
