"""`python -m benchmarks.soak`: a long compiled training of a small model with many updates.

20,000 steps with an update of masks and permutations every 10; every 1,000 steps the process's
memory, live objects, graphs and the loss are written down. The exit status is 1 if memory grew, a
third graph was compiled, a loss was not finite or a count was not exact.
"""

from __future__ import annotations

import gc
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

import padst_fx
from benchmarks import results_file
from benchmarks.table import Row
from padst_fx import DST, SparseLinear

STEPS, DELTA_T, REPORT = 20_000, 10, 1_000
# Until here caches fill: of the allocator, the compiler and the optimizer.
SETTLED = 2_000
GROWTH_MIB = 4.0
FEATURES, HIDDEN, CLASSES, BATCH = 64, 128, 16, 32


@dataclass
class Soak:
    """A student that learns what a dense teacher says, and what was seen of it so far."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    dst: DST
    teacher: nn.Module
    updates: int = 0

    @classmethod
    def start(cls) -> Soak:
        torch.manual_seed(0)
        teacher = nn.Sequential(nn.Linear(FEATURES, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, CLASSES))
        model = nn.Sequential(
            nn.Linear(FEATURES, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, HIDDEN), nn.ReLU(),
            nn.Linear(HIDDEN, CLASSES),
        )  # fmt: skip
        padst_fx.sparsify(model, "diag", 0.9, permutation="learned", init="random")
        optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
        dst = DST(model, optimizer, "rigl", delta_t=DELTA_T, t_end=10 * STEPS)
        return cls(model, optimizer, dst, teacher.requires_grad_(False))

    def step(self, forward: Callable[[Tensor], Tensor]) -> Tensor:
        """One step; returns the loss."""
        x = torch.randn(BATCH, FEATURES)
        loss = nn.functional.mse_loss(forward(x), self.teacher(x))
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.updates += self.dst.step()
        return loss.detach()

    def faults(self) -> list[str]:
        """Layers whose counts or permutations are not what they were planned to be."""
        found = []
        for name, layer in self.model.named_modules():
            if isinstance(layer, SparseLinear):
                exact = int(layer.pattern.mask(layer.index).sum()) == layer.pattern.nonzeros
                if not exact or layer.topology_fault(layer.index, layer.perm):
                    found.append(name)
        return found


def memory_mib() -> float:
    """The process's resident memory."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("/proc/self/status has no VmRSS")


def run() -> list[Row]:
    """Train, and write down a row every `REPORT` steps."""
    soak = Soak.start()
    counters.clear()
    forward = torch.compile(soak.model, backend="padst", fullgraph=True)
    rows: list[Row] = []
    start = time.perf_counter()
    worst = torch.zeros(())
    for step in range(1, STEPS + 1):
        loss = soak.step(forward)
        worst = torch.maximum(worst, loss)
        if step % REPORT == 0:
            gc.collect()
            rows.append(
                {
                    "step": step,
                    "updates": soak.updates,
                    "put_off": soak.dst.put_off,
                    "memory_mib": round(memory_mib(), 2),
                    "objects": len(gc.get_objects()),
                    "graphs": counters["stats"]["unique_graphs"],
                    "graph_breaks": sum(counters["graph_break"].values()),
                    "loss": float(f"{float(loss):.5g}"),
                    "worst_loss": float(f"{float(worst):.5g}"),
                    "exploration": round(soak.dst.exploration, 4),
                    "inexact_layers": len(soak.faults()),
                    "seconds": round(time.perf_counter() - start, 1),
                }
            )
            print(rows[-1], flush=True)
            worst.zero_()
    return rows


def faults(rows: list[Row]) -> list[str]:
    """What a sound run does not show."""
    settled = [row for row in rows if row["step"] >= SETTLED]
    growth = settled[-1]["memory_mib"] - settled[0]["memory_mib"]
    checks = {
        f"memory grew by {growth:.1f} MiB": growth > GROWTH_MIB,
        "not two graphs": any(row["graphs"] != 2 or row["graph_breaks"] for row in rows),
        "a loss was not finite": not all(math.isfinite(row["worst_loss"]) for row in rows),
        "a count was not exact": any(row["inexact_layers"] for row in rows),
        "updates are missing": rows[-1]["updates"] != STEPS // DELTA_T,
    }
    return [fault for fault, there in checks.items() if there]


def main() -> int:
    """Run and write `soak.csv`; 1 if something was wrong."""
    rows = run()
    print(f"written to {results_file.write('soak', rows)}")
    wrong = faults(rows)
    print("\n".join(wrong) or "memory flat, two graphs, losses finite, counts exact")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
