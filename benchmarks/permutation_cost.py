"""What learned permutations cost in training, against identity permutations.

A compiled MLP of eight `Diag` layers at 90 % is trained with RigL behind identity and behind
learned permutations, in turn in one process. An update every second step makes plain and scoring
steps take turns; a real training updates every `DELTA_T` steps, and the last row is its mean
step. Learned permutations start far from the identity, since reading through one is part of the
cost.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate
from statistics import median

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

import padst_fx
from benchmarks.compiled import compiled
from benchmarks.settings import Settings
from benchmarks.table import Row, Table
from benchmarks.timing import Timing, quartiles, seconds

SPARSITY, DELTA_T, PLAIN = 0.9, 100, 5
BASELINE, OTHER = "identity", "learned"
KINDS = ("plain", "scoring", "update")
KEPT = "kept from step to step: weights, indices, moments, DST"
MOST = "the most of all together"
WHOLE = f"mean of {DELTA_T} steps and an update"


@dataclass(frozen=True)
class Size:
    """Of an MLP of so many pairs of layers, up to `hidden` and back to `features`."""

    features: int
    hidden: int
    pairs: int
    tokens: int


FULL, QUICK = Size(768, 3072, 4, 788), Size(64, 128, 1, 32)


@dataclass(frozen=True)
class Training:
    """A model that updates its masks after every `PLAIN` plain steps and a scoring one."""

    model: nn.Module
    form: Callable[[Tensor], Tensor]
    optimizer: torch.optim.Optimizer
    dst: padst_fx.DST
    x: Tensor
    target: Tensor

    @classmethod
    def of(cls, permutation: str, size: Size) -> Training:
        torch.manual_seed(0)
        parts: list[nn.Module] = []
        for _ in range(size.pairs):
            up, down = nn.Linear(size.features, size.hidden), nn.Linear(size.hidden, size.features)
            parts += [up, nn.GELU(), down]
        model = nn.Sequential(*parts)
        padst_fx.sparsify(model, "diag", SPARSITY, permutation=permutation, init="random")
        for layer in layers(model):
            layer.perm.copy_(torch.randperm(len(layer.perm)))
        optimizer = torch.optim.AdamW(model.parameters(), 1e-4, fused=True)
        dst = padst_fx.DST(model, optimizer, "rigl", delta_t=PLAIN + 1, t_end=10**9)
        return cls(
            model,
            compiled(model, "padst"),
            optimizer,
            dst,
            torch.randn(size.tokens, size.features),
            torch.randn(size.tokens, size.features),
        )

    def step(self) -> None:
        """Forward, backward and optimizer."""
        nn.functional.mse_loss(self.form(self.x), self.target).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


def layers(model: nn.Module) -> list[padst_fx.SparseLinear]:
    """The sparse layers."""
    return [module for module in model.modules() if isinstance(module, padst_fx.SparseLinear)]


def measure(trainings: dict[str, Training], rounds: int) -> dict[str, dict[str, Timing]]:
    """Times by permutation and kind; a first round is not counted.

    The trainings take turns step by step; a round's plain step is the median of its `PLAIN`.
    """
    order = random.Random(0)
    found: dict[str, dict[str, list[float]]] = {
        name: {kind: [] for kind in KINDS} for name in trainings
    }
    for _ in range(rounds + 1):
        plain: dict[str, list[float]] = {name: [] for name in trainings}
        for number in range(PLAIN + 1):
            for name in order.sample(list(trainings), len(trainings)):
                training = trainings[name]
                step, update = seconds(training.step), seconds(training.dst.step)
                if number < PLAIN:
                    plain[name].append(step)
                else:
                    found[name]["scoring"].append(step)
                    found[name]["update"].append(update)
        for name, times in plain.items():
            found[name]["plain"].append(median(times))
    return {
        name: {kind: Timing(tuple(times[1:])) for kind, times in kinds.items()}
        for name, kinds in found.items()
    }


def whole(times: dict[str, Timing]) -> Timing:
    """The mean step where every `DELTA_T`th is a scoring one with an update after it."""
    rounds = zip(*(times[kind].rounds for kind in KINDS), strict=True)
    return Timing(
        tuple(
            ((DELTA_T - 1) * plain + scoring + update) / DELTA_T
            for plain, scoring, update in rounds
        )
    )


def time_rows(times: dict[str, dict[str, Timing]]) -> list[Row]:
    """Milliseconds of each kind and of a whole training; the median and the quartiles over rounds
    of learned time by identity time."""
    rows = []
    for what in (*KINDS, WHOLE):
        one, other = (
            whole(times[name]) if what == WHOLE else times[name][what] for name in (BASELINE, OTHER)
        )
        ratios = [mine / theirs for mine, theirs in zip(other.rounds, one.rounds, strict=True)]
        low, high = quartiles(ratios)
        rows.append(
            {
                "what": f"{what}, ms",
                BASELINE: round(1e3 * one.median, 2),
                OTHER: round(1e3 * other.median, 2),
                "ratio": round(median(ratios), 4),
                "ratio_low": round(low, 4),
                "ratio_high": round(high, 4),
            }
        )
    return rows


def memory_rows(trainings: dict[str, Training]) -> list[Row]:
    """MiB of torch's tensors: what is kept from step to step, what DST adds after an update and
    from a scoring step to it, the most that steps and the update allocate beyond what was there
    before, and the most of all together."""
    found = {name: _memory(training) for name, training in trainings.items()}
    rows: list[Row] = []
    for what in found[OTHER]:
        one, other = (found[name][what] / 2**20 for name in (BASELINE, OTHER))
        ratio = round(other / one, 4) if what in (KEPT, MOST) else ""
        cells = {BASELINE: round(one, 2), OTHER: round(other, 2), "ratio": ratio}
        rows.append({"what": f"{what}, MiB", **cells, "ratio_low": "", "ratio_high": ""})
    return rows


def _memory(training: Training) -> dict[str, int]:
    plain = _peak(training.step)
    training.dst.step()
    for _ in range(PLAIN - 1):
        training.step()
        training.dst.step()
    kept = _kept(training.dst)
    scoring = _peak(training.step)
    between = _kept(training.dst)
    update = _peak(training.dst.step)
    slots = [slot for state in training.optimizer.state.values() for slot in state.values()]
    tensors = [*training.model.parameters(), *training.model.buffers(), *slots]
    model = sum(tensor.nbytes for tensor in tensors if isinstance(tensor, Tensor))
    return {
        "kept by DST": kept,
        "kept by DST from a scoring step to its update": between,
        "peak of a plain step": plain,
        "peak of a scoring step": scoring,
        "peak of an update": update,
        KEPT: model + kept,
        MOST: model + max(kept + plain, kept + scoring, between + update),
    }


def _peak(call: Callable[[], object]) -> int:
    """The most bytes of torch's allocator that a call holds beyond what was held before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        call()
    assert profiled.profiler is not None
    events = profiled.profiler.kineto_results.events()
    changes = sorted(
        (event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]"
    )
    return max(accumulate((change for _, change in changes), initial=0))


def _kept(dst: padst_fx.DST) -> int:
    """Bytes of the tensors in the state of `dst`, and of the positions looked at."""
    seen: list[Tensor] = [state.positions for state in dst.permutations.states]
    pending: list[object] = [dst.state_dict()]
    while pending:
        value = pending.pop()
        if isinstance(value, Tensor):
            seen.append(value)
        elif isinstance(value, dict):
            pending += value.values()
    return sum(tensor.nbytes for tensor in seen)


def run(settings: Settings) -> Table:
    """Time and memory of both."""
    size = QUICK if settings.quick else FULL
    trainings = {name: Training.of(name, size) for name in (BASELINE, OTHER)}
    times = measure(trainings, settings.rounds)
    rows = [*time_rows(times), *memory_rows(trainings)]
    for training in trainings.values():
        training.dst.close()
    torch.compiler.reset()
    return Table(
        name="permutation_cost",
        title=f"training an MLP of {2 * size.pairs} layers, Diag, 90 % sparse",
        rows=rows,
        shown=(list(rows[0]), [[str(value) for value in row.values()] for row in rows]),
    )
