"""`python -m benchmarks.gpu`: sparse layers against dense cuBLAS on this CUDA device, in bf16.

Every product is checked against plain torch first; a wrong one ends the program. With up to 64
tokens both sides are replays of CUDA graphs. Times are medians, the calls take turns and the
second-level cache is flushed before each. `goal` is the target's speed-up, empty where none is set.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import results_file
from benchmarks.gpu_check import check, expected
from benchmarks.gpu_device import captured, microseconds, require_cuda, versions
from benchmarks.gpu_roofline import MATRIX_OPERATIONS, floor
from benchmarks.gpu_work import PARTS, STRUCTURES, TWO_FOUR, Work

SIZES = ((4096, 4096), (8192, 8192))
TOKENS = (1, 16, 64, 4096)
GRAPHED_TOKENS = 64


def goal(work: Work) -> float | None:
    """The speed-up over dense that the target table asks for."""
    if work.structure in TWO_FOUR:
        return 1.3 if work.out == 8192 else None
    if work.structure == "Diag()":
        return 4.0 if work.tokens <= 64 else 1.0
    if work.tokens <= 16:
        return 5.0
    if work.structure in ("Block(64)", "Diag(width=64)") and work.tokens == 4096:
        return 4.0 if work.part == "forward" else 3.5
    return None


def works() -> Iterator[Work]:
    """The rows of the target table that are one layer."""
    for out, inputs in SIZES:
        for name in STRUCTURES:
            for tokens in TOKENS:
                for part in PARTS if tokens > GRAPHED_TOKENS else ("forward",):
                    yield Work(name, part, out, inputs, tokens)
        for name in TWO_FOUR:
            yield Work(name, "forward", out, inputs, 4096)


def dense_call(work: Work, tensors: dict[str, Tensor]) -> Callable[[], Tensor]:
    """The same part of a dense layer: one cuBLAS product."""
    weight = torch.randn(work.out, work.inputs, device="cuda").to(work.dtype)
    x, grad, bias = tensors["x"], tensors["grad"], tensors["bias"]
    calls: dict[str, Callable[[], Tensor]] = {
        "forward": lambda: F.linear(x, weight, bias),
        "input_grad": lambda: grad @ weight,
        "weight_grad": lambda: grad.t() @ x,
    }
    return calls[work.part]


def csr_call(work: Work, tensors: dict[str, Tensor]) -> Callable[[], Tensor]:
    """cuSPARSE: a random unstructured weight of the same density, in CSR, times the tokens."""
    kept = torch.rand(work.out, work.inputs, device="cuda") < work.weights / (
        work.out * work.inputs
    )
    weight = (torch.randn(work.out, work.inputs, device="cuda") * kept).to(work.dtype)
    sparse, columns = weight.to_sparse_csr(), tensors["x"].t().contiguous()
    return lambda: sparse @ columns


def measure(work: Work, rounds: int) -> dict[str, Any]:
    """Check, then time one product and its dense counterpart."""
    tensors = work.tensors("cuda")
    calls: dict[str, Callable[[], object]] = {"sparse": work.call(tensors)}
    check(work, work.call(tensors)(), expected(work, tensors))
    calls["dense"] = dense_call(work, tensors)
    if work.tokens <= GRAPHED_TOKENS:
        calls = {name: captured(call) for name, call in calls.items()}
    if work.structure == "Diag()" and work.part == "forward" and work.tokens <= GRAPHED_TOKENS:
        calls["csr"] = csr_call(work, tensors)
    times = microseconds(calls, rounds)
    seconds, _ = floor(work.bytes(), work.operations(), MATRIX_OPERATIONS)
    wanted = goal(work)
    return {
        "structure": work.structure,
        "part": work.part,
        "out": work.out,
        "in": work.inputs,
        "tokens": work.tokens,
        "microseconds": round(times["sparse"], 2),
        "dense_microseconds": round(times["dense"], 2),
        "csr_microseconds": round(times["csr"], 2) if "csr" in times else "",
        "speedup": round(times["dense"] / times["sparse"], 3),
        "goal": wanted or "",
        "h100_floor_us": round(seconds * 1e6, 2),
        "rounds": rounds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--rounds", type=int, default=30)
    rounds = parser.parse_args().rounds
    require_cuda("python -m benchmarks.gpu")
    torch.manual_seed(0)
    machine, rows = versions(), []
    for work in works():
        row = measure(work, rounds)
        rows.append({**row, **machine})
        print(
            f"{work.structure:19} {work.part:11} {work.out}x{work.inputs} M={work.tokens:<5} "
            f"{row['microseconds']:9} us, dense {row['dense_microseconds']:9} us: "
            f"{row['speedup']:.2f}x, goal {row['goal'] or 'none'}",
            flush=True,
        )
    lost = [row for row in rows if row["speedup"] < 1]
    print(f"{len(rows)} products, dense is faster in {len(lost)}")
    print(f"written to {results_file.write('gpu', rows)}")


if __name__ == "__main__":
    main()
