"""`python -m benchmarks.safety`: what being safe costs a training of ViT-B/16 under RigL.

Bookkeeping of `DST` at every step, the search for scores that are not finite at every update, and
of a checkpoint of the training its checksum and the wait for the disk, each as a share of the
training steps between two of its kind.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import nn
from torch._inductor import config as inductor

import padst_fx
from benchmarks import results_file
from benchmarks.models import vit_b16
from benchmarks.structures import SPARSITY
from benchmarks.table import Row
from benchmarks.timing import seconds
from benchmarks.training import BATCH, Trainer
from padst_fx import checkpoint_file

ROUNDS, SAVES, UPDATE_EVERY, SAVE_EVERY = 12, 5, 100, 1000


class TimedDST(padst_fx.DST):
    """Remembers how long the search for scores that are not finite took."""

    spent = 0.0

    def _put_off(self, scored: Any) -> bool:
        start = time.perf_counter()
        result = super()._put_off(scored)
        self.spent = time.perf_counter() - start
        return result


def run() -> list[Row]:
    """A row per kind of check."""
    model = padst_fx.sparsify(vit_b16(), "diag", SPARSITY, init="random")
    trainer = Trainer.of(model, BATCH)
    dst = TimedDST(model, trainer.optimizer, "rigl", delta_t=3, t_end=10**9)
    times: dict[str, list[float]] = {"step": [], "bookkeeping": [], "finite": []}
    while len(times["finite"]) <= ROUNDS:
        scoring = next(iter(dst.states)).layer.scoring
        step, after = seconds(trainer.step), seconds(dst.step)
        if scoring:
            times["finite"].append(dst.spent)
        else:
            times["step"].append(step)
            times["bookkeeping"].append(after)
    checksum, flush = saving(model, trainer.optimizer, dst)
    step = statistics.median(times["step"][2:])
    parts = (
        ("bookkeeping of a step", statistics.median(times["bookkeeping"][2:]), 1),
        ("scores finite?", statistics.median(times["finite"][1:]), UPDATE_EVERY),
        ("checksum of a checkpoint", checksum, SAVE_EVERY),
        ("wait for the disk", flush, SAVE_EVERY),
    )
    return [
        {
            "check": name,
            "milliseconds": round(1e3 * spent, 3),
            "every_steps": every,
            "step_milliseconds": round(1e3 * step, 1),
            "share": f"{spent / (every * step):.2e}",
        }
        for name, spent, every in parts
    ]


def saving(
    model: nn.Module, optimizer: torch.optim.Optimizer, dst: padst_fx.DST
) -> tuple[float, float]:
    """Seconds that `save_training` takes for the checksum, and for waiting until all is written."""
    spent: dict[str, list[float]] = {"checksum": [], "flush": []}

    def timed(kind: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any) -> Any:
            start = time.perf_counter()
            result = function(*given)
            spent[kind][-1] += time.perf_counter() - start
            return result

        return call

    with (
        tempfile.TemporaryDirectory() as folder,
        patch.object(checkpoint_file, "_checksum", timed("checksum", checkpoint_file._checksum)),
        patch.object(os, "fsync", timed("flush", os.fsync)),
    ):
        for number in range(SAVES):
            for times in spent.values():
                times.append(0.0)
            padst_fx.save_training(model, Path(folder) / f"{number}", optimizer, dst)
    return statistics.median(spent["checksum"]), statistics.median(spent["flush"])


def main() -> None:
    """Measure and write `safety.csv`."""
    inductor.compile_threads = 1
    torch.manual_seed(0)
    rows = run()
    for row in rows:
        print(row)
    print(f"written to {results_file.write('safety', rows)}")


if __name__ == "__main__":
    main()
