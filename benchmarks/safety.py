"""`python -m benchmarks.safety`: what being safe costs a training of ViT-B/16 under RigL.

Bookkeeping of `DST` at every step, the search for scores that are not finite at every update, and
the checksum of a checkpoint, each as a share of the training steps between two of its kind.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch
from torch._inductor import config as inductor

import padst_fx
from benchmarks import results_file
from benchmarks.models import vit_b16
from benchmarks.structures import SPARSITY
from benchmarks.table import Row
from benchmarks.timing import seconds
from benchmarks.training import BATCH, Trainer
from padst_fx import checkpoint_file
from padst_fx.checkpoint import content

ROUNDS, UPDATE_EVERY, SAVE_EVERY = 12, 100, 1000


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
    header, tensors = content(model)
    checksum = [seconds(lambda: checkpoint_file._checksum(str(header), tensors)) for _ in range(5)]
    step = statistics.median(times["step"][2:])
    parts = (
        ("bookkeeping of a step", statistics.median(times["bookkeeping"][2:]), 1),
        ("scores finite?", statistics.median(times["finite"][1:]), UPDATE_EVERY),
        ("checksum of the model", statistics.median(checksum), SAVE_EVERY),
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
