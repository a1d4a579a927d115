"""Trains the runs of a grid that are not in the result file, several at a time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path

from benchmarks.study import results
from benchmarks.study.runs import Run


class RunFailed(RuntimeError):
    """A run's process ended badly; the message ends with its own words."""


def remaining(runs: Sequence[Run], path: Path) -> list[Run]:
    """The runs without a row."""
    done = {results.run_of(row).key for row in results.read(path)}
    return [run for run in runs if run.key not in done]


def train_all(runs: Sequence[Run], path: Path, workers: int) -> None:
    """Train each in a process of its own with its share of the cores; rows are added as runs end.

    Raises `RunFailed` at the first run that fails; rows of finished runs stay, and the next call
    goes on from there.
    """
    from tqdm import tqdm

    threads = max(1, (os.cpu_count() or 1) // workers)
    with ThreadPoolExecutor(workers) as pool, tqdm(total=len(runs), unit="run") as bar:
        waiting = {pool.submit(_train_one, run, threads): run for run in runs}
        try:
            for future in as_completed(waiting):
                results.add(path, future.result())
                bar.set_postfix_str(waiting[future].name)
                bar.update()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _train_one(run: Run, threads: int) -> dict[str, object]:
    command = [sys.executable, "-m", "benchmarks.study.one", json.dumps(asdict(run)), str(threads)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise RunFailed(f"{run.name} failed:\n{done.stderr[-3000:]}")
    return results.last_json(done.stdout)
