"""What learned permutations cost in training, against identity permutations.

A compiled MLP of eight `Diag` layers at 90 % is trained with RigL behind identity and behind
learned permutations, in turn in one process. An update every second step makes plain and scoring
steps take turns; a real training updates every `DELTA_T` steps, and the last row is its mean
step. Learned permutations start far from the identity, since reading through one is part of the
cost.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

import padst_fx
from benchmarks.compiled import compiled
from benchmarks.settings import Settings
from benchmarks.table import Row, Table
from benchmarks.timing import Ratio, Timing, seconds

FEATURES, HIDDEN, TOKENS, PAIRS = 768, 3072, 788, 4
QUICK_FEATURES, QUICK_HIDDEN, QUICK_TOKENS, QUICK_PAIRS = 64, 128, 32, 1
SPARSITY, DELTA_T = 0.9, 100
BASELINE, OTHER = "identity", "learned"
KINDS = ("plain", "scoring", "update")
WHOLE = f"mean of {DELTA_T} steps and an update"


@dataclass(frozen=True)
class Training:
    """A model that updates its masks after every second step."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    dst: padst_fx.DST
    x: Tensor
    target: Tensor

    @classmethod
    def of(cls, permutation: str, quick: bool) -> Training:
        features = QUICK_FEATURES if quick else FEATURES
        hidden, tokens = (QUICK_HIDDEN, QUICK_TOKENS) if quick else (HIDDEN, TOKENS)
        torch.manual_seed(0)
        pair = [nn.Linear(features, hidden), nn.GELU(), nn.Linear(hidden, features)]
        pairs = [*pair, *(_fresh(part) for _ in range(_pairs(quick) - 1) for part in pair)]
        model = nn.Sequential(*pairs)
        padst_fx.sparsify(model, "diag", SPARSITY, permutation=permutation, init="random")
        for layer in layers(model):
            layer.perm.copy_(torch.randperm(len(layer.perm)))
        optimizer = torch.optim.AdamW(model.parameters(), 1e-4, fused=True)
        dst = padst_fx.DST(model, optimizer, "rigl", delta_t=2, t_end=10**9)
        return cls(
            compiled(model, "padst"),  # type: ignore[arg-type]
            optimizer,
            dst,
            torch.randn(tokens, features),
            torch.randn(tokens, features),
        )

    def step(self) -> None:
        """Forward, backward and optimizer."""
        nn.functional.mse_loss(self.model(self.x), self.target).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def times(self) -> dict[str, float]:
        """Seconds of a plain step, of a scoring step and of the update after it."""
        plain = seconds(self.step)
        self.dst.step()
        return {"plain": plain, "scoring": seconds(self.step), "update": seconds(self.dst.step)}


def layers(model: nn.Module) -> list[padst_fx.SparseLinear]:
    """The sparse layers."""
    return [module for module in model.modules() if isinstance(module, padst_fx.SparseLinear)]


def _pairs(quick: bool) -> int:
    return QUICK_PAIRS if quick else PAIRS


def _fresh(part: nn.Module) -> nn.Module:
    if isinstance(part, nn.Linear):
        return nn.Linear(part.in_features, part.out_features)
    return nn.GELU()


def measure(trainings: dict[str, Training], rounds: int) -> dict[str, dict[str, Timing]]:
    """Times by permutation and kind, the trainings in turn; a first round is not counted."""
    order = random.Random(0)
    found: dict[str, list[dict[str, float]]] = {name: [] for name in trainings}
    for _ in range(rounds + 1):
        for name in order.sample(list(trainings), len(trainings)):
            found[name].append(trainings[name].times())
    return {
        name: {kind: Timing(tuple(times[kind] for times in rows[1:])) for kind in KINDS}
        for name, rows in found.items()
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
    """Milliseconds of each kind and of a whole training; learned times by identity times."""
    rows = []
    for what in (*KINDS, WHOLE):
        one, other = (
            whole(times[name]) if what == WHOLE else times[name][what] for name in (BASELINE, OTHER)
        )
        ratio = Ratio.of(other, one)
        rows.append(
            {
                "what": f"{what}, ms",
                BASELINE: round(1e3 * one.median, 2),
                OTHER: round(1e3 * other.median, 2),
                "ratio": round(ratio.value, 4),
                "ratio_low": round(ratio.low, 4),
                "ratio_high": round(ratio.high, 4),
            }
        )
    return rows


def memory_rows(trainings: dict[str, Training]) -> list[Row]:
    """MiB that DST keeps after an update and from a scoring step to it, and the most that a
    scoring step and the update took beyond what was there before (of the whole process)."""
    found = {name: _memory(training) for name, training in trainings.items()}
    return [
        {
            "what": f"{what}, MiB",
            BASELINE: round(found[BASELINE][what] / 2**20, 2),
            OTHER: round(found[OTHER][what] / 2**20, 2),
            "ratio": "",
            "ratio_low": "",
            "ratio_high": "",
        }
        for what in found[OTHER]
    ]


def _memory(training: Training) -> dict[str, int]:
    training.step()
    training.dst.step()
    kept = _kept(training.dst)
    before = _resident("VmRSS", reset=True)
    training.step()
    scoring, between = _resident("VmHWM") - before, _kept(training.dst)
    before = _resident("VmRSS", reset=True)
    training.dst.step()
    return {
        "kept by DST": kept,
        "kept by DST from a scoring step to its update": between,
        "peak of a scoring step": scoring,
        "peak of an update": _resident("VmHWM") - before,
    }


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


def _resident(key: str, reset: bool = False) -> int:
    """Bytes of memory of this process, now ("VmRSS") or at most ("VmHWM") since a reset."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(key))


def run(settings: Settings) -> Table:
    """Time and memory of both."""
    trainings = {name: Training.of(name, settings.quick) for name in (BASELINE, OTHER)}
    times = measure(trainings, settings.rounds)
    rows = [*time_rows(times), *memory_rows(trainings)]
    for training in trainings.values():
        training.dst.close()
    torch.compiler.reset()
    return Table(
        name="permutation_cost",
        title=f"training an MLP of {2 * _pairs(settings.quick)} layers, Diag, 90 % sparse",
        rows=rows,
        shown=(list(rows[0]), [[str(value) for value in row.values()] for row in rows]),
    )
