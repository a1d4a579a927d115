"""The CUDA device a measurement runs on, how it is timed, and a clear end where there is none."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

FLUSHED_BYTES = 256 * 2**20


class Times(NamedTuple):
    """Microseconds of a call, one number a round."""

    rounds: list[float]

    @property
    def median(self) -> float:
        return statistics.median(self.rounds)

    @property
    def spread(self) -> float:
        """The distance between the quartiles, of the median."""
        low, _, high = statistics.quantiles(self.rounds, n=4)
        return (high - low) / self.median


def require_cuda(program: str) -> torch.device:
    """The current CUDA device; ends the program with one sentence where there is none."""
    if not torch.cuda.is_available():
        sys.exit(f"{program} measures on a CUDA device and torch finds none here.")
    return torch.device("cuda", torch.cuda.current_device())


def versions() -> dict[str, str]:
    """The device's name, and what the kernels were built and run with."""
    import triton

    major, minor = torch.cuda.get_device_capability()
    return {
        "gpu": torch.cuda.get_device_name(),
        "capability": f"{major}.{minor}",
        "cuda": str(torch.version.cuda),
        "triton": triton.__version__,
    }


def repeated(call: Callable[[int], object], times: int) -> Callable[[], object]:
    """``call`` with 0, 1, ... as one call, and as one CUDA graph: no time between launches."""

    def calls() -> None:
        for i in range(times):
            call(i)

    return captured(calls)


def captured(call: Callable[[], object]) -> Callable[[], object]:
    """``call`` as the replay of a CUDA graph, after a warm-up on a side stream.

    What the call reads stays in memory as long as the replay: a graph itself keeps no tensor.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = call, call()

    def replay() -> object:
        graph.replay()
        return kept

    return replay


def microseconds(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, Times]:
    """Times of each call on the device, the calls taking turns, caches flushed before each.

    Weights of a whole model do not stay in the second-level cache between two uses; a kernel timed
    over and over on one layer would find them there.
    """
    flush = torch.empty(FLUSHED_BYTES, dtype=torch.int8, device="cuda")
    times: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    for _ in range(rounds):
        for name, call in calls.items():
            times[name].append(_timed(call, flush))
    return {name: Times(own) for name, own in times.items()}


def _timed(call: Callable[[], object], flush: Tensor) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    flush.zero_()
    begin.record()
    call()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) * 1e3
