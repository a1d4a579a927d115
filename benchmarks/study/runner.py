"""Trains the runs of a grid that are not in the result file, several at a time."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from benchmarks.study import one, results
from benchmarks.study.runs import Run


class RunFailed(RuntimeError):
    """A run ended badly; the message has its name and what it said."""


def remaining(runs: Sequence[Run], path: Path) -> list[Run]:
    """The runs without a row."""
    done = {results.run_of(row).key for row in results.read(path)}
    return [run for run in runs if run.key not in done]


def train_all(
    runs: Sequence[Run],
    path: Path,
    workers: int,
    minutes: float = float("inf"),
    device: str = "cpu",
) -> None:
    """Train each in a process of its own with its share of the threads; rows are added as runs end.

    After `minutes` no further run is started. Raises `RunFailed` at the first run that fails; rows
    of finished runs stay, and the next call goes on from there.
    """
    from tqdm import tqdm

    threads = max(1, torch.get_num_threads() // workers)
    os.environ["OMP_NUM_THREADS"] = str(threads)
    # A run's process is forked from one that has imported everything and computed nothing.
    context = multiprocessing.get_context("forkserver")
    # Optimizers import Dynamo at their first step, which takes longer than many a run.
    context.set_forkserver_preload([one.__name__, "torch._dynamo"])
    with (
        ProcessPoolExecutor(workers, context, max_tasks_per_child=1) as pool,
        tqdm(total=len(runs), unit="run") as bar,
    ):
        end = time.monotonic() + 60 * minutes
        waiting = iter(runs)
        running = _start(pool, islice(waiting, workers), threads, device)
        while running:
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                run = running.pop(future)
                results.add(path, _row(run, future))
                bar.set_postfix_str(run.name)
                bar.update()
            if time.monotonic() < end:
                running |= _start(pool, islice(waiting, len(done)), threads, device)


def _start(
    pool: ProcessPoolExecutor, runs: Iterator[Run], threads: int, device: str
) -> dict[Future[dict[str, Any]], Run]:
    return {pool.submit(one.row, run, threads, device): run for run in runs}


def _row(run: Run, future: Future[dict[str, Any]]) -> dict[str, Any]:
    try:
        return future.result()
    except BrokenProcessPool as error:
        raise RunFailed(f"{run.name}: its process was killed") from error
    except Exception as error:
        raise RunFailed(f"{run.name} failed: {error}") from error
