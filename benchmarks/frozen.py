"""Frozen models behind random permutations against the same models behind identities.

ViT-B/16 on 1 and on 16 images, and GPT-2 small on 1 and on 16 prompts, four layers of each, 90 %
sparse but for the head, fp32, frozen and compiled. Checked against the model that was frozen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import padst_fx
from benchmarks import plots
from benchmarks.compiled import compiled
from benchmarks.measured import DENSE, Contestant, measure
from benchmarks.models import error_share, gpt2_small, vit_b16
from benchmarks.settings import Settings
from benchmarks.structures import SPARSITY, STRUCTURES
from benchmarks.table import Row, Table, noise_note, ratio_cell

NAMES = ("Diag()", "Diag(width=16)", "Block(16)", "NM(1, 10)")
QUICK_NAMES, QUICK_WORKLOADS = ("Diag()",), 1
PROMPT = 64
BATCHES, QUICK_BATCHES = (1, 16), (1,)
LAYERS = 4  # compiling twelve takes longer than measuring them, and each layer is like the next


@dataclass(frozen=True)
class Workload:
    """A model, and one input of it for a batch size."""

    name: str
    build: Callable[[], nn.Module]
    argument: Callable[[int], Tensor]


class Logits(nn.Module):
    """A model that returns its logits alone and keeps no cache."""

    def __init__(self, model: nn.Module, **options: Any) -> None:
        super().__init__()
        self.model = model
        self.options = options

    def forward(self, argument: Tensor) -> Tensor:
        return self.model(argument, **self.options).logits


def workloads(layers: int) -> list[Workload]:
    """Both models, of so many layers."""
    return [
        Workload("ViT-B/16", lambda: Logits(vit_b16(layers)), _images),
        Workload(
            "GPT-2 small",
            lambda: Logits(gpt2_small(layers), use_cache=False, logits_to_keep=1),
            _prompts,
        ),
    ]


def _images(batch: int) -> Tensor:
    return torch.randn(batch, 3, 224, 224)


def _prompts(batch: int) -> Tensor:
    return torch.randint(50257, (batch, PROMPT))


def contestants(dense: nn.Module, argument: Tensor, names: list[str]) -> Iterator[Contestant]:
    """Dense, and every structure frozen behind identities and behind random permutations."""
    yield _contestant(DENSE, "identity", dense, dense, argument)
    for name in names:
        for permutation in ("identity", "random"):
            model = padst_fx.sparsify(
                deepcopy(dense), STRUCTURES[name], SPARSITY, permutation=permutation
            )
            frozen = padst_fx.freeze(model, argument, skip_slower=False)
            yield _contestant(name, permutation, frozen, model, argument)


def _contestant(
    name: str, permutation: str, form: nn.Module, model: nn.Module, argument: Tensor
) -> Contestant:
    counts: dict[str, int] = getattr(form, "report").counts if name != DENSE else {}  # noqa: B009
    call = partial(compiled(form, "inductor" if name == DENSE else "padst"), argument)
    fates = ("folded", "absorbed", "read through", "gather")
    extra = {"permutation": permutation, **{fate: counts.get(fate, 0) for fate in fates}}
    return Contestant(name, permutation, call, partial(error_share, model(argument), call), extra)


@torch.no_grad()
def run(settings: Settings) -> Table:
    """Measure both models; the first one with `--quick`."""
    names = settings.choose(NAMES, QUICK_NAMES)
    rows: list[Row] = []
    layers = min(settings.layers, LAYERS)
    measured = QUICK_WORKLOADS if settings.quick else None
    for workload in workloads(layers)[:measured]:
        for batch in QUICK_BATCHES if settings.quick else BATCHES:
            dense, argument = workload.build().eval(), workload.argument(batch)
            found = list(contestants(dense, argument, names))
            facts = {"workload": workload.name, "layers": layers, "batch": batch}
            rows += measure(found, settings.rounds, facts)
            torch.compiler.reset()
    return Table(
        name="frozen",
        title="frozen models, fp32, compiled: permuted time by the time with identities",
        rows=rows,
        shown=_shown(rows),
        draw=partial(_draw, rows),
        notes=[noise_note(rows)],
    )


def _pairs(rows: list[Row]) -> Iterator[tuple[Row, Row]]:
    """Every row of a random permutation with that of the identity."""
    keys = ("workload", "batch", "structure")
    plain = {tuple(r[k] for k in keys): r for r in rows if r["permutation"] == "identity"}
    for row in rows:
        if row["permutation"] == "random":
            yield row, plain[tuple(row[key] for key in keys)]


def _cost(row: Row, plain: Row) -> str:
    if row["status"] != "ok" or plain["status"] != "ok":
        return ""
    return f"{row['microseconds'] / plain['microseconds']:.3f}"


def _shown(rows: list[Row]) -> tuple[list[str], list[list[str]]]:
    columns = ["model", "batch", "structure", "folded", "read through", "gathers",
               "dense / identity", "dense / permuted", "permuted / identity"]  # fmt: skip
    return columns, [
        [
            row["workload"], str(row["batch"]), row["structure"], str(row["folded"]),
            str(row["read through"]), str(row["gather"]), ratio_cell(plain), ratio_cell(row),
            _cost(row, plain),
        ]
        for row, plain in _pairs(rows)
    ]  # fmt: skip


def _draw(rows: list[Row]) -> Any:
    """Bars of the permuted models, a panel per model and batch."""
    panels = [
        (f"{name}, batch {batch}", [row for row, _ in _pairs(rows)
         if (row["workload"], row["batch"]) == (name, batch) and row["status"] == "ok"])
        for name, batch in dict.fromkeys((row["workload"], row["batch"]) for row in rows)
    ]  # fmt: skip
    return plots.bars(panels, "dense time / permuted time, both compiled")
