"""`python -m benchmarks.study.times [grid.json]`: what models of a grid take to train and to run.

Accuracy can be measured on a busy machine, time cannot, so it is a pass of its own. Each kind of
run is measured in a process of its own, in turn with the dense model of its size: compiled training
steps, an update among every `delta_t` of them, and compiled inference of the frozen model. What
has a row in the result file is not measured again.
"""

from __future__ import annotations

import argparse
import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import padst_fx
from benchmarks.compiled import compiled
from benchmarks.machine import describe
from benchmarks.results_file import RESULTS
from benchmarks.study import pareto, results, runs
from benchmarks.study.__main__ import CONFIGS
from benchmarks.study.runs import DENSE, Run
from benchmarks.study.training import Training
from benchmarks.timing import Ratio, Timing, interleaved
from padst_fx.cost.devices import device_of

# A round of steps is `delta_t` of them: seconds.
STEP_ROUNDS, LATENCY_ROUNDS = 6, 20
ENDLESS = 10**6


def kinds(found: Sequence[Run]) -> list[Run]:
    """The sparse runs of a grid that take different time, each once, with seed 0."""
    alike = {run.timed_as: run for run in found}
    return [replace(run, seed=0) for run in alike.values() if run.structure != DENSE]


def measure(run: Run, device: str = "cpu") -> dict[str, Any]:
    """The row of a run: medians, and dense time by its own with quartiles over rounds."""
    place = torch.device(device)
    dense = replace(run, structure=DENSE, permutation="", method="", sparsity=0.0)
    # As at a training's start: largest updates, and soft matrices not yet hardened.
    started = {"dense": dense, "own": replace(run, steps=ENDLESS)}
    steps = interleaved(
        {name: _steps(Training.of(r, place)) for name, r in started.items()}, STEP_ROUNDS
    )
    # A hardened permutation is one by index.
    plain = replace(run, permutation="random") if run.permutation == "soft" else run
    deployed = {"dense": dense, "own": plain}
    latency = interleaved(
        {name: _inference(Training.of(r, place)) for name, r in deployed.items()}, LATENCY_ROUNDS
    )
    return {
        **asdict(run),
        **_columns("step", steps, run.delta_t),
        **_columns("latency", latency, 1),
        **describe(),
        "device": device_of(place).name if place.type == "cuda" else "cpu",
    }


def _steps(training: Training) -> Callable[[], None]:
    """`delta_t` steps: one of them scores, and is followed by an update."""
    inputs, targets = _batch(training)
    form = compiled(training.model, training.backend)

    def steps() -> None:
        for _ in range(training.run.delta_t):
            training.step(form, inputs, targets)
        _finish(inputs)

    return steps


def _batch(training: Training) -> tuple[Tensor, Tensor]:
    """Inputs and targets, where the model is."""
    device = next(training.model.parameters()).device
    inputs, targets = training.task.inputs(0, torch.Generator().manual_seed(0))
    return inputs.to(device), targets.to(device)


def _finish(inputs: Tensor) -> None:
    """Wait for a GPU."""
    if inputs.is_cuda:
        torch.cuda.synchronize(inputs.device)


@torch.no_grad()
def _inference(training: Training) -> Callable[[], object]:
    """A batch of one through the frozen model."""
    inputs = _batch(training)[0][:1]
    form: nn.Module = training.model.eval()
    if training.dst is not None:
        training.dst.close()
        form = padst_fx.freeze(form, inputs)
    call = compiled(form, training.backend)

    @torch.no_grad()
    def run() -> None:
        call(inputs)
        _finish(inputs)

    return run


def _columns(name: str, found: dict[str, Timing], calls: int) -> dict[str, float]:
    ratio = Ratio.of(found["dense"], found["own"])
    milliseconds = {key: timing.median * 1e3 / calls for key, timing in found.items()}
    return {
        f"{name}_ms": round(milliseconds["own"], 4),
        f"dense_{name}_ms": round(milliseconds["dense"], 4),
        f"{name}_ratio": round(ratio.value, 3),
        f"{name}_ratio_low": round(ratio.low, 3),
        f"{name}_ratio_high": round(ratio.high, 3),
    }


def main() -> None:
    """Measure what has no row, then draw accuracy against time."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.study.times", description=__doc__)
    parser.add_argument("grid", nargs="?", type=Path, default=CONFIGS / "wide.json")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    given = parser.parse_args()
    accuracies = RESULTS / "study" / f"{given.grid.stem}.csv"
    measure_all(kinds(runs.read(given.grid)), pareto.times_path(accuracies), given.device)
    print(pareto.text(accuracies))
    pareto.draw(accuracies)


def measure_all(found: Sequence[Run], path: Path, device: str = "cpu") -> None:
    """Add a row for each kind that has none."""
    done = {results.run_of(row).timed_as for row in results.read(path)}
    context = multiprocessing.get_context("spawn")
    for run in found:
        if run.timed_as not in done:
            with ProcessPoolExecutor(1, context) as pool:
                results.add(path, pool.submit(measure, run, device).result())
            print(run.name)


if __name__ == "__main__":
    main()
