"""`python -m benchmarks.kernels`: every projection op against `F.linear`, 90 % sparse, fp32.

A round times dense and every structure once, in turn, so that what else the machine does falls on
all alike. The ratio is the median over rounds of dense time by sparse time: above 1, sparse is
faster. Each call is repeated until it has lasted about `SPAN` seconds.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import padst_fx
from benchmarks import results_file

SHAPES = ((768, 768), (3072, 768), (768, 3072))
TOKENS = (1024, 16, 1)
SPARSITY = 0.9
SPAN = 0.01
STRUCTURES: dict[str, padst_fx.Structure] = {
    "Diag()": padst_fx.Diag(),
    "Diag(width=16)": padst_fx.Diag(width=16),
    "Block(16)": padst_fx.Block(16),
    "Block(32)": padst_fx.Block(32),
    "NM(1, 10)": padst_fx.NM(1, 10),
    "NM(1, 10, tile=16)": padst_fx.NM(1, 10, tile=16),
    "Unstructured()": padst_fx.Unstructured(),
}


@dataclass(frozen=True)
class Work:
    """One layer on one input: its forward, and its backward (both gradients) from a saved graph."""

    forward: Callable[[], object]
    backward: Callable[[], object]

    @classmethod
    def of(cls, layer: nn.Module, x: Tensor) -> Work:
        inputs = (x.detach().requires_grad_(), *layer.parameters())
        y = layer(inputs[0])
        gradient = torch.randn_like(y)

        def forward() -> Tensor:
            with torch.no_grad():
                return layer(x)

        def backward() -> tuple[Tensor, ...]:
            return torch.autograd.grad(y, inputs, gradient, retain_graph=True)

        return cls(forward, backward)


def measure(out: int, inputs: int, tokens: int, rounds: int) -> list[dict[str, Any]]:
    """Rows for one shape: times in microseconds and ratios to dense, per structure."""
    x = torch.randn(tokens, inputs)
    layers = {"dense": nn.Linear(inputs, out)} | {
        name: padst_fx.SparseLinear(inputs, out, structure, SPARSITY)
        for name, structure in STRUCTURES.items()
    }
    works = {name: Work.of(layer, x) for name, layer in layers.items()}
    rows: list[dict[str, Any]] = []
    for part in ("forward", "backward"):
        calls = {name: getattr(work, part) for name, work in works.items()}
        seconds = interleaved(calls, rounds)
        for name, own in seconds.items():
            ratios = [dense / time_ for dense, time_ in zip(seconds["dense"], own, strict=True)]
            rows.append(
                {
                    "part": part,
                    "out": out,
                    "in": inputs,
                    "tokens": tokens,
                    "structure": name,
                    "microseconds": round(statistics.median(own) * 1e6, 1),
                    "speedup": round(statistics.median(ratios), 3),
                    "rounds": rounds,
                }
            )
    return rows


def interleaved(
    calls: dict[str, Callable[[], object]], rounds: int
) -> dict[str, list[float]]:
    """Seconds of each call in each round, the calls taking turns."""
    repeats = {name: max(1, int(SPAN / seconds(call, 1))) for name, call in calls.items()}
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            times[name].append(seconds(call, repeats[name]))
    return times


def seconds(call: Callable[[], object], repeats: int) -> float:
    """Seconds per call; the first call ever is not in it."""
    call()
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats


def show(rows: Sequence[dict[str, Any]]) -> None:
    """A Markdown table of the speedups: one line per shape, one column per structure."""
    print("| part | out x in | tokens |", " | ".join(STRUCTURES), "|")
    print("|---" * (3 + len(STRUCTURES)) + "|")
    keys = dict.fromkeys((row["part"], row["out"], row["in"], row["tokens"]) for row in rows)
    for part, out, inputs, tokens in keys:
        found = {
            row["structure"]: row["speedup"]
            for row in rows
            if (row["part"], row["out"], row["in"], row["tokens"]) == (part, out, inputs, tokens)
        }
        cells = " | ".join(f"{found[name]:.2f}" for name in STRUCTURES)
        print(f"| {part} | {out} x {inputs} | {tokens} | {cells} |")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kernels", description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    rounds = parser.parse_args().rounds
    torch.manual_seed(0)
    rows = [
        row
        for out, inputs in SHAPES
        for tokens in TOKENS
        for row in measure(out, inputs, tokens, rounds)
    ]
    show(rows)
    print(f"written to {results_file.write('kernels', rows)}")


if __name__ == "__main__":
    main()
