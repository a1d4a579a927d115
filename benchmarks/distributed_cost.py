"""What training on several ranks adds to `DST`: the checks, hashes, reductions and broadcasts.

`python -m benchmarks.distributed_cost` trains an MLP on two gloo ranks of one thread each, times
updates of ranks that agree against updates of ranks for themselves (a process group of one) in
turn, and writes `distributed_cost.csv`. Ranks meet before each timing, so waiting for a slower one
is not in it.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import padst_fx
from benchmarks import results_file
from padst_fx.dst.gradient_average import average_gradients
from padst_fx.tables import render

RANKS, FEATURES, HIDDEN, TOKENS, BLOCKS = 2, 384, 1536, 788, 3
WARMUP, ROUNDS = 3, 20
EVERY = 100  # steps between two updates, as DST does by default
CASES = [("ddp", "set"), ("ddp", "rigl"), ("ddp", "rigl_exact"), ("ddp", "dynadiag"),
         ("fsdp", "rigl")]  # fmt: skip


class Training:
    """A model that updates every so many steps, with all ranks or for itself."""

    def __init__(
        self, wrapper: str, method: str, delta_t: int, group: dist.ProcessGroup | None = None
    ) -> None:
        torch.manual_seed(0)
        layers: list[nn.Module] = []
        for _ in range(BLOCKS):
            layers += [nn.Linear(FEATURES, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, FEATURES)]
        model = padst_fx.sparsify(nn.Sequential(*layers), "diag", 0.9, init="random")
        self.model, self.run = model, self._wrapped(model, wrapper)
        self.optimizer = torch.optim.AdamW(model.parameters(), 1e-4)
        self.dst = padst_fx.DST(
            model, self.optimizer, method, delta_t, t_end=10**7, process_group=group
        )
        self.x = torch.randn(TOKENS, FEATURES)

    @staticmethod
    def _wrapped(model: nn.Module, wrapper: str) -> nn.Module:
        if wrapper == "ddp":
            return DistributedDataParallel(model)
        fully_shard(model, mesh=init_device_mesh("cpu", (RANKS,)))
        return model

    def train(self) -> None:
        """All of a step but DST's."""
        self.run(self.x).square().mean().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


def timed(function: Callable[[], object]) -> float:
    """Seconds, once all ranks are there."""
    dist.barrier()
    begin = time.perf_counter()
    function()
    return time.perf_counter() - begin


def measure(wrapper: str, method: str, alone: dist.ProcessGroup) -> dict[str, Any]:
    """One row: medians in milliseconds, and what agreeing costs of a training's steps."""
    plain, together = Training(wrapper, method, 10**6), Training(wrapper, method, 1)
    single = Training("ddp", method, 1, alone)
    layers = [m for m in together.model.modules() if isinstance(m, padst_fx.SparseLinear)]
    alphas = [layer.alpha for layer in layers if layer.alpha is not None]
    times: dict[str, list[float]] = {"step": [], "together": [], "alone": [], "every": []}
    for _ in range(WARMUP + ROUNDS):
        times["step"].append(timed(plain.train))
        plain.dst.step()
        together.train()
        times["together"].append(timed(together.dst.step))
        single.train()
        times["alone"].append(timed(single.dst.step))
        for alpha in alphas:
            alpha.grad = torch.zeros_like(alpha)
        times["every"].append(timed(lambda: average_gradients(alphas, None)))
    medians = {name: 1e3 * median(values[WARMUP:]) for name, values in times.items()}
    added = (medians["together"] - medians["alone"]) / EVERY + medians["every"]
    return {
        "wrapper": wrapper,
        "method": method,
        "training_step_ms": round(medians["step"], 2),
        "update_ms": round(medians["together"], 2),
        "update_alone_ms": round(medians["alone"], 2),
        "each_step_ms": round(medians["every"], 3),
        "added_share_percent": round(100 * added / medians["step"], 3),
    }


def rank_main(rank: int, folder: str) -> None:
    """Measure on one of the ranks; the first writes what it saw."""
    torch.set_num_threads(1)
    store = dist.FileStore(os.path.join(folder, "store"), RANKS)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=RANKS)
    groups = [dist.new_group([member]) for member in range(RANKS)]
    rows = [measure(wrapper, method, groups[rank]) for wrapper, method in CASES]
    if rank == 0:
        torch.save(rows, Path(folder) / "rows.pt")
    dist.destroy_process_group()


def main() -> None:
    """Measure, print and write."""
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(rank_main, (folder,), nprocs=RANKS)
        rows = torch.load(Path(folder) / "rows.pt", weights_only=True)
    print(render("ranks that agree", tuple(rows[0]), [tuple(map(str, r.values())) for r in rows]))
    print(f"written to {results_file.write('distributed_cost', rows)}")


if __name__ == "__main__":
    main()
