"""`python -m benchmarks.tune_tiles`: measure the tiles of every Triton kernel on this CUDA device.

For each product of the target table it finds the tiles that are looked up, checks the calculated
one against plain torch, times the candidates (those with a wrong result or that do not fit the
device are left out) and writes the fastest of each to the package, in
`kernels/tiles/measured/<device>.json`, where launches find them from then on.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from benchmarks.gpu_check import WrongResultError, check, expected
from benchmarks.gpu_device import captured, microseconds, require_cuda, versions
from benchmarks.gpu_work import PARTS, STRUCTURES, TWO_FOUR, Work
from padst_fx.kernels.tiles import table
from padst_fx.kernels.tiles.candidates import candidates
from padst_fx.kernels.tiles.problem import Problem, Tiles

SIZES = ((768, 768), (3072, 768), (768, 3072), (4096, 4096), (8192, 8192))
TOKENS = (1, 16, 64, 256, 1024, 4096)
WORTHWHILE = 0.98


def problems(call: Callable[[], Tensor]) -> list[Problem]:
    """The problems whose tiles ``call`` looks up."""
    seen: list[Problem] = []

    def note(problem: Problem) -> None:
        seen.append(problem)

    with table.choosing(note):
        call()
    return seen


def fastest(work: Work, problem: Problem, rounds: int) -> tuple[Tiles, float, float]:
    """The best candidate for a problem, its microseconds and the calculated tile's."""
    tensors = work.tensors("cuda")
    call, want = work.call(tensors), expected(work, tensors)
    choices = candidates(problem)
    with table.forced(problem.kernel, choices[0]):
        check(work, call(), want)
    times = [_time(work, problem, tiles, call, want, rounds) for tiles in choices]
    best = min(range(len(choices)), key=times.__getitem__)
    if times[best] > WORTHWHILE * times[0]:
        best = 0
    return choices[best], times[best], times[0]


def _time(
    work: Work,
    problem: Problem,
    tiles: Tiles,
    call: Callable[[], Tensor],
    want: Tensor,
    rounds: int,
) -> float:
    """Microseconds with ``tiles``; infinite where the tile does not fit or is wrong."""
    from triton.runtime.errors import OutOfResources, PTXASError

    with table.forced(problem.kernel, tiles):
        try:
            check(work, call(), want)
        except (OutOfResources, PTXASError, WrongResultError) as error:
            print(f"    left out {tiles}: {type(error).__name__}")
            return float("inf")
        timed = captured(call) if work.tokens <= 64 and problem.kernel != "two_four" else call
        return microseconds({"it": timed}, rounds)["it"]


def works() -> Iterator[Work]:
    """The layers and token counts that are measured."""
    for out, inputs in SIZES:
        for name in STRUCTURES:
            for part in PARTS:
                for tokens in TOKENS:
                    yield Work(name, part, out, inputs, tokens)
        for name in TWO_FOUR:
            for tokens in TOKENS:
                yield Work(name, "forward", out, inputs, tokens)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tune_tiles", description=__doc__)
    parser.add_argument("--rounds", type=int, default=10)
    rounds = parser.parse_args().rounds
    require_cuda("python -m benchmarks.tune_tiles")
    name = torch.cuda.get_device_name()
    measured: dict[str, Tiles] = {}
    for work in works():
        for problem in problems(work.call(work.tensors("cuda"))):
            if problem.key() in measured:
                continue
            tiles, best, calculated = fastest(work, problem, rounds)
            measured[problem.key()] = tiles
            print(f"{problem.key()}: {calculated:.1f} -> {best:.1f} us with {tiles}", flush=True)
            table.write(name, measured, versions())
    print(f"{len(measured)} tiles written to {table.path_of(name)}")


if __name__ == "__main__":
    main()
