"""The whole comparison: every contestant from every seed, then sizes, then times side by side."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch._dynamo.utils import counters
from tqdm import tqdm

from examples.digits_vit import contestants, data
from examples.digits_vit.contestants import Contestant
from examples.digits_vit.training import Recipe, Trained, step, train


@dataclass(frozen=True)
class Size:
    """Stored numbers, and bytes of optimizer state, of some parameters."""

    parameters: int
    optimizer_bytes: int


@dataclass(frozen=True)
class Result:
    """One contestant's row: accuracies by seed, sizes, graphs, and steps in seconds.

    `step_seconds` holds one time per round; in every round all contestants take one step, in
    turn, so that what else the machine does falls on all alike.
    """

    name: str
    accuracies: tuple[float, ...]
    projections: Size
    everything: Size
    graphs: int
    step_seconds: tuple[float, ...]
    first: Trained


def compare(recipe: Recipe, seeds: Sequence[int], rounds: int) -> list[Result]:
    """Train every contestant from every seed, under one progress bar, and measure."""
    digits = data.load()
    built: list[Contestant] = []
    trained: list[list[Trained]] = []
    graphs: list[int] = []
    total = recipe.steps * len(seeds) * len(contestants.STRUCTURES)
    with tqdm(total=total, unit="step", mininterval=1) as bar:
        for name in contestants.STRUCTURES:
            bar.set_description(name)
            before = counters["stats"]["unique_graphs"]
            contestant = contestants.build(name)
            runs = [train(contestant, digits, recipe, seed, bar.update) for seed in seeds]
            built.append(contestant)
            trained.append(runs)
            graphs.append(counters["stats"]["unique_graphs"] - before)
    times = step_times(built, [runs[-1] for runs in trained], digits, recipe, rounds)
    return [
        Result(
            contestant.name,
            tuple(run.accuracy for run in runs),
            size(parameters(contestant.projections.values()), runs[-1].optimizer),
            size(contestant.model.parameters(), runs[-1].optimizer),
            graph_count,
            seconds,
            runs[0],
        )
        for contestant, runs, graph_count, seconds in zip(
            built, trained, graphs, times, strict=True
        )
    ]


def parameters(modules: Iterable[nn.Module]) -> list[nn.Parameter]:
    """The parameters of several modules."""
    return [parameter for module in modules for parameter in module.parameters()]


def size(held: Iterable[nn.Parameter], optimizer: torch.optim.Optimizer) -> Size:
    """Numbers stored in the parameters, and the bytes the optimizer keeps for them."""
    numbers = state_bytes = 0
    for parameter in held:
        numbers += parameter.numel()
        state_bytes += sum(
            slot.nbytes
            for slot in optimizer.state[parameter].values()
            if isinstance(slot, torch.Tensor)
        )
    return Size(numbers, state_bytes)


def step_times(
    built: Sequence[Contestant],
    last: Sequence[Trained],
    digits: data.Digits,
    recipe: Recipe,
    rounds: int,
) -> list[tuple[float, ...]]:
    """Seconds per plain training step, contestants taking turns, after three rounds to warm up."""
    images, labels = digits.batch(recipe.batch, torch.Generator().manual_seed(0))
    times: list[list[float]] = [[] for _ in built]
    for round_ in range(-3, rounds):
        for contestant, run, collected in zip(built, last, times, strict=True):
            start = time.perf_counter()
            step(contestant, run.optimizer, images, labels)
            if round_ >= 0:
                collected.append(time.perf_counter() - start)
    return [tuple(collected) for collected in times]


def time_ratio(result: Result, dense: Result) -> float:
    """Median over rounds of this contestant's time by the dense model's in the same round."""
    pairs = zip(result.step_seconds, dense.step_seconds, strict=True)
    return statistics.median(own / other for own, other in pairs)
