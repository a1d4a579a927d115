"""`python -m benchmarks.tune_tiles`: measure the tiles of every Triton kernel on this CUDA device.

For each product of the target table it finds the tiles that are looked up and compiles the
candidates, in several processes. Then it checks the calculated tile against plain torch, times the
candidates (those with a wrong result or that do not fit the device are left out) and writes the
fastest of each to the package, in `kernels/tiles/measured/<device>.json`, where launches find them
from then on; tiles of other problems stay in the file.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import product
from multiprocessing import get_context

import torch
from torch import Tensor

from benchmarks.gpu_check import WrongResultError, check, expected
from benchmarks.gpu_device import microseconds, repeated, require_cuda, versions
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
    times = [_time(work, problem, tiles, tensors, want, rounds) for tiles in choices]
    best = min(range(len(choices)), key=times.__getitem__)
    if times[best] > WORTHWHILE * times[0]:
        best = 0
    return choices[best], times[best], times[0]


def _time(
    work: Work,
    problem: Problem,
    tiles: Tiles,
    tensors: dict[str, Tensor],
    want: Tensor,
    rounds: int,
) -> float:
    """A layer's microseconds with ``tiles``; infinite where the tile does not fit or is wrong."""
    from triton.runtime.errors import OutOfResources, PTXASError

    call, layers = work.call(tensors), work.layers
    with table.forced(problem.kernel, tiles):
        try:
            check(work, call(), want)
        except (OutOfResources, PTXASError, WrongResultError) as error:
            print(f"    left out {tiles}: {type(error).__name__}")
            return float("inf")
        # The library's calls are not captured: weights packed before would be replayed.
        if problem.kernel == "two_four":
            return microseconds({"it": call}, rounds)["it"].median
        calls = [work.call(layer) for layer in work.sets(tensors, layers)]
        timed = repeated(lambda i: calls[i](), layers)
        return microseconds({"it": timed}, rounds)["it"].median / layers


def works(
    sizes: Sequence[tuple[int, int]], tokens: Sequence[int], structures: Sequence[str]
) -> Iterator[Work]:
    """The layers and token counts that are measured."""
    for (out, inputs), name, count in product(sizes, structures, tokens):
        for part in PARTS if name in STRUCTURES else PARTS[:1]:
            yield Work(name, part, out, inputs, count)


def found_problems(works: Iterable[Work]) -> dict[str, tuple[Work, Problem]]:
    """By key: every problem that one of the works meets, with the first that does."""
    found: dict[str, tuple[Work, Problem]] = {}
    for work in works:
        for problem in problems(work.call(work.tensors("cuda"))):
            found.setdefault(problem.key(), (work, problem))
    return found


def compile_candidates(job: tuple[Work, Problem]) -> None:
    """Call a product with every candidate once, which leaves the kernels in Triton's cache."""
    work, problem = job
    call = work.call(work.tensors("cuda"))
    for tiles in candidates(problem):
        # What does not fit the device is met again, and told, where it is timed.
        with suppress(Exception), table.forced(problem.kernel, tiles):
            call()


def shape(text: str) -> tuple[int, int]:
    out, inputs = text.split("x")
    return int(out), int(inputs)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tune_tiles", description=__doc__)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--workers", type=int, default=8, help="processes that compile")
    parser.add_argument("--sizes", type=shape, nargs="+", default=SIZES, metavar="OUTxIN")
    parser.add_argument("--tokens", type=int, nargs="+", default=TOKENS)
    names = [*STRUCTURES, *TWO_FOUR]
    parser.add_argument("--structures", nargs="+", default=names, choices=names)
    options = parser.parse_args()
    require_cuda("python -m benchmarks.tune_tiles")
    name = torch.cuda.get_device_name()
    found = found_problems(works(options.sizes, options.tokens, options.structures))
    with get_context("spawn").Pool(options.workers) as pool:
        pool.map(compile_candidates, found.values(), chunksize=1)
    measured = dict(table.read(name))
    for key, (work, problem) in found.items():
        measured[key], best, calculated = fastest(work, problem, options.rounds)
        print(f"{key}: {calculated:.1f} -> {best:.1f} us with {measured[key]}", flush=True)
        table.write(name, measured, versions())
    print(f"{len(found)} tiles of {len(measured)} written to {table.path_of(name)}")


if __name__ == "__main__":
    main()
