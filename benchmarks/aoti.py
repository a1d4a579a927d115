"""Packages of AOTInductor on this CPU: what a call costs, against dense packages and torch.compile.

One token through one layer, where a call is nearly all there is, and one image through four layers
of a ViT-B/16. Everything is 90 % sparse, fp32, called from Python, on torch's threads.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import padst_fx
from benchmarks import plots
from benchmarks.compiled import compiled
from benchmarks.frozen import LAYERS, Logits
from benchmarks.measured import DENSE, Contestant, measure
from benchmarks.models import error_share, vit_b16
from benchmarks.settings import Settings
from benchmarks.structures import SPARSITY, STRUCTURES
from benchmarks.table import Row, Table, noise_note, ratio_cell

NAMES = ("Diag()",)
QUICK_WORKLOADS = 1


@dataclass(frozen=True)
class Workload:
    """A dense model, one input of it, and the layers that become sparse (None: all but heads)."""

    name: str
    build: Callable[[], nn.Module]
    argument: Tensor
    layers: tuple[str, ...] | None = None


def workloads(layers: int) -> list[Workload]:
    """Two layers of one token each, and a transformer of so many layers."""
    return [
        Workload("16 x 16, 1 token", partial(_linear, 16), torch.randn(1, 16), ("0",)),
        Workload("768 x 768, 1 token", partial(_linear, 768), torch.randn(1, 768), ("0",)),
        Workload(f"ViT-B/16, {layers} layers, 1 image", lambda: Logits(vit_b16(layers)),
                 torch.randn(1, 3, 224, 224)),
    ]  # fmt: skip


def _linear(width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(width, width))


def contestants(workload: Workload, names: list[str], folder: Path) -> Iterator[Contestant]:
    """The dense package, and every structure as a package and compiled by "padst"."""
    dense, argument = workload.build().eval(), workload.argument
    yield _package(DENSE, dense, dense, argument, folder)
    for name in names:
        model = padst_fx.sparsify(
            deepcopy(dense), STRUCTURES[name], SPARSITY, permutation="random",
            include=workload.layers,
        )  # fmt: skip
        frozen = padst_fx.freeze(model, argument, skip_slower=False)
        yield _package(name, frozen, model, argument, folder)
        call = partial(compiled(frozen, "padst"), argument)
        check = partial(error_share, model(argument), call)
        yield Contestant(name, "torch.compile", call, check)


def _package(
    name: str, form: nn.Module, model: nn.Module, argument: Tensor, folder: Path
) -> Contestant:
    path = padst_fx.export_aoti(form, argument, folder / f"{name}.pt2", skip_slower=False)
    call = partial(torch._inductor.aoti_load_package(str(path)), argument)
    return Contestant(name, "package", call, partial(error_share, model(argument), call))


@torch.no_grad()
def run(settings: Settings) -> Table:
    """Measure every workload; the first one with `--quick`."""
    names = settings.choose(NAMES, NAMES)
    rows: list[Row] = []
    measured = QUICK_WORKLOADS if settings.quick else None
    for workload in workloads(min(settings.layers, LAYERS))[:measured]:
        with tempfile.TemporaryDirectory() as folder:
            found = list(contestants(workload, names, Path(folder)))
            rows += measure(found, settings.rounds, {"workload": workload.name})
        torch.compiler.reset()
    return Table(
        name="aoti",
        title="packages of AOTInductor, fp32: time of the dense package by the time",
        rows=rows,
        shown=_shown(rows),
        draw=partial(_draw, rows),
        notes=[noise_note(rows)],
    )


def _shown(rows: list[Row]) -> tuple[list[str], list[list[str]]]:
    columns = ["workload", "structure", "form", "us", "dense / sparse"]
    return columns, [
        [
            row["workload"], row["structure"], row["mode"],
            f"{row['microseconds']:,.1f}" if row["status"] == "ok" else "", ratio_cell(row),
        ]
        for row in rows
    ]  # fmt: skip


def _draw(rows: list[Row]) -> Any:
    """Bars of packages, a panel per workload."""
    panels = [
        (name, [row for row in rows if row["workload"] == name and row["mode"] == "package"
                and row["structure"] != DENSE and row["status"] == "ok"])
        for name in dict.fromkeys(row["workload"] for row in rows)
    ]  # fmt: skip
    return plots.bars(panels, "dense time / sparse time, packages")
