"""`python -m benchmarks.gpu`: sparse layers against dense cuBLAS on this CUDA device, in bf16.

Every product is checked against plain torch first; a wrong one ends the program. Both sides are
replays of CUDA graphs over several layers, 32 with up to 64 tokens and 4 with more, so that neither
launches nor weights left in a cache are measured; a time is a layer's. cuSPARSE is called as torch
calls it, since it cannot be captured. Times are medians, the calls take turns and the second-level
cache is flushed before each. `goal` is the target's speed-up, empty where none is set.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import results_file
from benchmarks.gpu_check import check, expected
from benchmarks.gpu_device import Times, captured, microseconds, repeated, require_cuda, versions
from benchmarks.gpu_roofline import MATRIX_OPERATIONS, floor
from benchmarks.gpu_work import PARTS, STRUCTURES, TWO_FOUR, Work
from benchmarks.machine import commit
from padst_fx.cost import Work as CostWork
from padst_fx.cost.devices import device_of
from padst_fx.cost.records import Record, write_records
from padst_fx.kernels.two_four.library import PACKED

SIZES = ((4096, 4096), (8192, 8192))
TOKENS = (1, 16, 64, 4096)
FEW_TOKENS = 64


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
                for part in PARTS if tokens > FEW_TOKENS else ("forward",):
                    yield Work(name, part, out, inputs, tokens)
        for name in TWO_FOUR:
            yield Work(name, "forward", out, inputs, 4096)


def dense_call(work: Work, tensors: dict[str, Tensor]) -> Callable[[int], Tensor]:
    """The same part of dense layers: one cuBLAS product each."""
    shape = (work.layers, work.out, work.inputs)
    weights = torch.empty(shape, dtype=work.dtype, device="cuda").normal_()
    x, grad, bias = tensors["x"], tensors["grad"], tensors["bias"]
    calls: dict[str, Callable[[int], Tensor]] = {
        "forward": lambda i: F.linear(x, weights[i], bias),
        "input_grad": lambda i: grad @ weights[i],
        "weight_grad": lambda i: grad.t() @ x,
    }
    return calls[work.part]


def sparse_call(work: Work, tensors: dict[str, Tensor]) -> Callable[[int], Tensor]:
    calls = [work.call(layer) for layer in work.sets(tensors, work.layers)]
    return lambda i: calls[i]()


def csr_call(work: Work, tensors: dict[str, Tensor]) -> Callable[[], Tensor]:
    """cuSPARSE: a random unstructured weight of the same density, in CSR, times the tokens."""
    kept = torch.rand(work.out, work.inputs, device="cuda") < work.weights / (
        work.out * work.inputs
    )
    weight = (torch.randn(work.out, work.inputs, device="cuda") * kept).to(work.dtype)
    sparse, columns = weight.to_sparse_csr(), tensors["x"].t().contiguous()
    return lambda: sparse @ columns


def library_times(work: Work, tensors: dict[str, Tensor], rounds: int) -> dict[str, Any]:
    """cuSPARSELt on 2:4 weights: alone, in a graph, and with what torch takes to call it."""
    if work.structure not in TWO_FOUR:
        return {"library_microseconds": "", "library_call_microseconds": ""}
    weight = PACKED.get(tensors["values"], tensors["index"])

    def call() -> Tensor:
        with torch.no_grad():
            return F.linear(tensors["x"], weight, tensors["bias"])

    check(work, call(), expected(work, tensors))
    times = microseconds({"graph": captured(call), "call": call}, rounds)
    return {
        "library_microseconds": round(times["graph"].median, 2),
        "library_call_microseconds": round(times["call"].median, 2),
    }


def measure(work: Work, rounds: int) -> dict[str, Any]:
    """Check, then time one product and its dense counterpart."""
    tensors = work.tensors("cuda")
    check(work, work.call(tensors)(), expected(work, tensors))
    calls: dict[str, Callable[[], object]] = {
        "sparse": repeated(sparse_call(work, tensors), work.layers),
        "dense": repeated(dense_call(work, tensors), work.layers),
    }
    times = {
        name: Times([taken / work.layers for taken in own.rounds])
        for name, own in microseconds(calls, rounds).items()
    }
    if work.structure == "Diag()" and work.part == "forward":
        times |= microseconds({"csr": csr_call(work, tensors)}, rounds)
    seconds, _ = floor(work.bytes(), work.operations(), MATRIX_OPERATIONS)
    sparse, dense = times["sparse"], times["dense"]
    return {
        "structure": work.structure,
        "part": work.part,
        "out": work.out,
        "in": work.inputs,
        "tokens": work.tokens,
        "microseconds": round(sparse.median, 2),
        "dense_microseconds": round(dense.median, 2),
        "csr_microseconds": round(times["csr"].median, 2) if "csr" in times else "",
        **library_times(work, tensors, rounds),
        "speedup": round(dense.median / sparse.median, 3),
        "spread": round(max(sparse.spread, dense.spread), 3),
        "goal": goal(work) or "",
        "h100_floor_us": round(seconds * 1e6, 2),
        "rounds": rounds,
    }


def cost_records(rows: Iterable[dict[str, Any]]) -> Iterator[Record]:
    """A record of the cost model for every forward, dense and sparse."""
    device = device_of(torch.device("cuda"))
    for row in rows:
        work = Work(*(row[name] for name in ("structure", "part", "out", "in", "tokens")))
        if work.part != "forward":
            continue
        dense, sparse = CostWork.dense(work.out, work.inputs), CostWork.of(work.pattern())
        for cost, taken in ((dense, "dense_microseconds"), (sparse, "microseconds")):
            yield Record(
                device=device.name,
                kernels=device.kernels,
                threads=device.threads,
                dtype=str(work.dtype).removeprefix("torch."),
                structure=cost.structure,
                out_features=cost.out_features,
                in_features=cost.in_features,
                nonzeros=cost.nonzeros,
                tokens=work.tokens,
                microseconds=row[taken],
                versions=f"torch {torch.__version__}, commit {commit()}",
            )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--record-costs", action="store_true", help="also for the cost model")
    options = parser.parse_args()
    rounds = options.rounds
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
    if options.record_costs:
        print("written to", *write_records(cost_records(rows)))


if __name__ == "__main__":
    main()
