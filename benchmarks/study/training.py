"""Trains one run with the public API and says what came out."""

from __future__ import annotations

import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

import padst_fx
from benchmarks.study.runs import DENSE, Run
from benchmarks.study.structures import STRUCTURES
from benchmarks.study.tasks import TASKS
from benchmarks.study.tasks.task import Task
from padst_fx.cost.devices import device_of

WARM_UP = 0.1
T_END = 0.75
WEIGHT_DECAY = 0.01
CLIP = 1.0


def train(run: Run, device: str = "cpu") -> dict[str, Any]:
    """The row of a run: its fields, and what was measured."""
    place = torch.device(device)
    before = _peak_mib(place)
    training = Training.of(run, place)
    task, model, optimizer = training.task, training.model, training.optimizer
    started = _permutations(model)
    rate = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        [group["lr"] for group in optimizer.param_groups],
        total_steps=run.steps,
        pct_start=WARM_UP,
    )
    form = torch.compile(model, backend=training.backend) if run.compiled else model
    generator = torch.Generator().manual_seed(run.seed)
    seconds = []
    for _ in range(run.steps):
        inputs, targets = (t.to(place) for t in task.inputs(run.seed, generator))
        start = time.perf_counter()
        training.step(form, inputs, targets)
        rate.step()
        if place.type == "cuda":
            torch.cuda.synchronize(place)
        seconds.append(time.perf_counter() - start)
    model.eval()
    return {
        **asdict(run),
        "metric": task.metric,
        "value": task.evaluate(model, run.seed),
        "step_ms": round(statistics.median(seconds) * 1e3, 3),
        "seconds": round(sum(seconds), 1),
        "peak_mib": _peak_mib(place) - before,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "exploration": "" if training.dst is None else round(training.dst.exploration, 4),
        "moved": _moved(started, _permutations(model)),
        "device": device_of(place).name if place.type == "cuda" else "cpu",
    }


@dataclass(frozen=True)
class Training:
    """A run's model, with what trains it; `dst` is None for a dense one."""

    run: Run
    task: Task
    model: nn.Module
    optimizer: torch.optim.Optimizer
    dst: padst_fx.DST | None

    @classmethod
    def of(cls, run: Run, place: torch.device) -> Training:
        """Before its first step, on a device."""
        task = TASKS[run.task]
        task.check_size(run.size, run.sparsity)
        torch.manual_seed(run.seed)
        model = _sparsified(task.model(run.size).to(place), task, run)
        optimizer = torch.optim.AdamW(
            model.parameters(), run.learning_rate, weight_decay=WEIGHT_DECAY
        )
        dst = None if run.structure == DENSE else _dst(model, optimizer, run)
        return cls(run, task, model, optimizer, dst)

    @property
    def backend(self) -> str:
        """What compiles the model."""
        return "inductor" if self.run.structure == DENSE else "padst"

    def step(self, form: Callable[..., Tensor], inputs: Tensor, targets: Tensor) -> None:
        """One step through `form`, the model or what it was compiled to."""
        loss = self.task.loss(form(inputs), targets)
        if self.dst is not None:
            loss = loss + self.dst.penalty()
        loss.backward()
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        nn.utils.clip_grad_norm_(parameters, CLIP)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.dst is not None:
            self.dst.step()


def _sparsified(model: nn.Module, task: Task, run: Run) -> nn.Module:
    if run.structure == DENSE:
        return model
    return padst_fx.sparsify(
        model,
        STRUCTURES[run.structure],
        run.sparsity,
        permutation=dict.fromkeys(run.permuted.split(), run.permutation),
        distribution=run.distribution,
        include=run.layers.split(),
        exclude=task.exclude or None,
        init="random",
    )


def _dst(model: nn.Module, optimizer: torch.optim.Optimizer, run: Run) -> padst_fx.DST:
    t_end = max(1, round(T_END * run.steps))
    soft = None
    if run.permutation == "soft":
        soft = padst_fx.SoftPermutation(
            weight=run.soft_weight,
            harden_at=max(1, round(run.harden_at * run.steps)),
            learning_rate=run.soft_rate,
        )
    return padst_fx.DST(
        model,
        optimizer,
        run.method,
        delta_t=run.delta_t,
        t_end=t_end,
        drop_fraction=run.drop_fraction,
        seed=run.seed,
        soft=soft,
    )


def _peak_mib(place: torch.device) -> int:
    """The most that this process has had in memory, on a GPU what tensors took of its memory."""
    if place.type == "cuda":
        return round(torch.cuda.max_memory_allocated(place) / 2**20)
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def _permutations(model: nn.Module) -> list[Tensor]:
    """The positions of every permuted layer, in their order."""
    layers = [m for m in model.modules() if isinstance(m, padst_fx.SparseLinear)]
    return [layer.perm.clone() for layer in layers if layer.perm.numel()]


def _moved(before: list[Tensor], now: list[Tensor]) -> str:
    """The share of each layer's positions that read another feature than at the start."""
    pairs = zip(before, now, strict=True)
    return " ".join(f"{float((old != new).double().mean()):.3f}" for old, new in pairs)
