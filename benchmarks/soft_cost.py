"""What soft permutations cost while they are soft: a training step's time, and memory.

`python -m benchmarks.soft_cost` times compiled steps (forward, backward, fused AdamW and the
projection) of an MLP with identity and with soft permutations in turn, counts what training a
ViT-B/16 keeps, and writes `soft_cost.csv`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

import padst_fx
from benchmarks import results_file
from benchmarks.memory import training_bytes
from benchmarks.models import vit_b16
from benchmarks.timing import Ratio, interleaved
from padst_fx.tables import render

FEATURES, HIDDEN, TOKENS, ROUNDS = 384, 1536, 512, 20


def step_of(permutation: str) -> Callable[[], object]:
    """A training step that stays as it is for the whole measurement."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(FEATURES, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, FEATURES))
    padst_fx.sparsify(model, "diag", 0.9, permutation=permutation, init="random")
    compiled = torch.compile(model, backend="padst", fullgraph=True)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4, fused=True)
    dst = padst_fx.DST(model, optimizer, "set", delta_t=10**6, t_end=10**7)
    x = torch.randn(TOKENS, FEATURES)

    def step() -> None:
        (compiled(x).square().mean() + dst.penalty()).backward()
        optimizer.step()
        optimizer.zero_grad()
        dst.step()

    return step


def time_row() -> dict[str, Any]:
    """The soft step in identity steps."""
    times = interleaved({kind: step_of(kind) for kind in ("identity", "soft")}, ROUNDS)
    ratio = Ratio.of(times["soft"], times["identity"])
    return {
        "what": f"training step, MLP {FEATURES}-{HIDDEN}-{FEATURES}, {TOKENS} tokens, Diag, ms",
        "identity": round(1e3 * times["identity"].median, 2),
        "soft": round(1e3 * times["soft"].median, 2),
        "ratio": round(ratio.value, 2),
        "ratio_low": round(ratio.low, 2),
        "ratio_high": round(ratio.high, 2),
    }


def memory_row() -> dict[str, Any]:
    """Parameters, gradients, AdamW's moments and buffers of a ViT-B/16's projections."""
    identity = training_bytes(padst_fx.Diag(), 12)["projections"]
    with torch.device("meta"):
        model = padst_fx.sparsify(vit_b16(12), "diag", 0.9, permutation="soft", init="random")
    layers = [m for m in model.modules() if isinstance(m, padst_fx.SparseLinear)]
    # The matrix, its gradient and two moments; and the index, which is there from the start.
    added = sum(4 * 4 * m.in_features**2 + m.perm.nbytes for m in layers)
    ratio = round((identity + added) / identity, 2)
    return {
        "what": "projections of ViT-B/16 in training, Diag, MiB",
        "identity": round(identity / 2**20, 1),
        "soft": round((identity + added) / 2**20, 1),
        "ratio": ratio,
        "ratio_low": ratio,
        "ratio_high": ratio,
    }


def main() -> None:
    """Measure, count, print and write."""
    rows = [time_row(), memory_row()]
    print(render("soft permutations", tuple(rows[0]), [tuple(map(str, r.values())) for r in rows]))
    print(f"written to {results_file.write('soft_cost', rows)}")


if __name__ == "__main__":
    main()
