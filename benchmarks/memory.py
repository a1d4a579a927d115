"""What training a ViT-B/16 keeps: parameters, gradients, AdamW's two moments and index buffers.

Counted from the tensors of a model built from its configuration, for its projections and for the
whole model.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn

import padst_fx
from benchmarks import plots
from benchmarks.measured import DENSE
from benchmarks.models import vit_b16
from benchmarks.settings import Settings
from benchmarks.structures import MODELS, QUICK_MODELS, SPARSITY, STRUCTURES
from benchmarks.table import Row, Table

BASELINE = "Unstructured()"


def training_bytes(structure: padst_fx.Structure | None, layers: int) -> dict[str, int]:
    """Bytes kept by the projections and by the whole model after one AdamW step."""
    model = vit_b16(layers)
    names = [entry.projection.name for entry in padst_fx.plan(model, "diag", SPARSITY).replaced]
    if structure is not None:
        padst_fx.sparsify(model, structure, SPARSITY, permutation="identity", init="random")
    optimizer = torch.optim.AdamW(model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    kept = sum(bytes_of(model.get_submodule(name), optimizer) for name in names)
    return {"projections": kept, "model": bytes_of(model, optimizer), "layers": len(names)}


def bytes_of(module: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Parameters, gradients, optimizer state and buffers of a module, in bytes."""
    total = sum(buffer.nbytes for buffer in module.buffers())
    for parameter in module.parameters():
        assert parameter.grad is not None
        slots = optimizer.state[parameter].values()
        total += parameter.nbytes + parameter.grad.nbytes
        total += sum(slot.nbytes for slot in slots if isinstance(slot, torch.Tensor))
    return total


def run(settings: Settings) -> Table:
    """Count for dense, for every structure and for the masked baseline."""
    names = settings.choose(MODELS, QUICK_MODELS)
    structures: dict[str, padst_fx.Structure | None] = {
        DENSE: None,
        **{name: STRUCTURES[name] for name in names},
        BASELINE: padst_fx.Unstructured(),
    }
    found = {
        name: training_bytes(structure, settings.layers) for name, structure in structures.items()
    }
    dense = found[DENSE]
    rows: list[Row] = [
        {
            "structure": name,
            "layers": kept["layers"],
            "projection_bytes": kept["projections"],
            "projection_ratio": round(kept["projections"] / dense["projections"], 4),
            "model_bytes": kept["model"],
            "model_ratio": round(kept["model"] / dense["model"], 4),
        }
        for name, kept in found.items()
    ]
    return Table(
        name="memory",
        title="what training a ViT-B/16 keeps: weights, gradients, AdamW's moments, indices",
        rows=rows,
        shown=_shown(rows),
        draw=partial(_draw, rows),
    )


def _shown(rows: list[Row]) -> tuple[list[str], list[list[str]]]:
    columns = ["model", "projections", "of dense", "whole model", "of dense"]
    return columns, [
        [
            row["structure"],
            f"{row['projection_bytes'] / 2**20:,.1f} MiB",
            f"{row['projection_ratio']:.3f}",
            f"{row['model_bytes'] / 2**20:,.1f} MiB",
            f"{row['model_ratio']:.3f}",
        ]
        for row in rows
    ]


def _draw(rows: list[Row]) -> Any:
    panels = [
        (
            part,
            [
                {"structure": r["structure"], "ratio": r[key], "ratio_low": r[key],
                 "ratio_high": r[key]}
                for r in rows if r["structure"] != DENSE
            ],
        )
        for part, key in (("projections", "projection_ratio"), ("whole model", "model_ratio"))
    ]  # fmt: skip
    return plots.bars(panels, "bytes, share of dense")
