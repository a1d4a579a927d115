"""Accuracy on a real task: the digits vision transformer, trained sparse with each permutation.

RigL trains the examples' model from fresh weights by the examples' recipe, its eight projections
sparse; kinds of permutation differ in nothing else. Every training has as many steps.
"""

from __future__ import annotations

from statistics import mean, stdev

import torch
import torch.nn.functional as F
from torch import nn

import padst_fx
from benchmarks.post_training import PROJECTIONS, accuracy
from benchmarks.settings import Settings
from benchmarks.structures import STRUCTURES
from benchmarks.table import Row, Table
from examples.digits_vit.data import Digits, load
from examples.digits_vit.model import VisionTransformer
from examples.digits_vit.training import Recipe
from padst_fx.permutation import PERMUTATIONS

NAMES = ("Diag()",)
SPARSITIES = (0.9, 0.95)
SEEDS = 5
QUICK_STEPS = 40


def trained(digits: Digits, recipe: Recipe, model: nn.Module, seed: int) -> padst_fx.DST:
    """Train a sparsified model in place; the manager tells what became of its permutations."""
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay
    )
    dst = padst_fx.DST(
        model,
        optimizer,
        "rigl",
        delta_t=recipe.delta_t,
        t_end=recipe.steps * 3 // 4,
        drop_fraction=recipe.drop_fraction,
        seed=seed,
    )
    rate = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, recipe.learning_rate, total_steps=recipe.steps, pct_start=0.15
    )
    generator = torch.Generator().manual_seed(seed)
    for _ in range(recipe.steps):
        images, labels = digits.batch(recipe.batch, generator)
        (F.cross_entropy(model(images), labels) + dst.penalty()).backward()
        optimizer.step()
        optimizer.zero_grad()
        rate.step()
        dst.step()
    return dst


def permutations(model: nn.Module) -> torch.Tensor:
    """The positions of all sparse layers, one after the other."""
    layers = [m for m in model.modules() if isinstance(m, padst_fx.SparseLinear)]
    return torch.cat([layer.perm for layer in layers])


def row(digits: Digits, recipe: Recipe, name: str, sparsity: float, kind: str, seed: int) -> Row:
    """One training."""
    torch.manual_seed(seed)
    model = padst_fx.sparsify(
        VisionTransformer(),
        STRUCTURES[name],
        sparsity,
        permutation=kind,
        include=PROJECTIONS,
        init="random",
    )
    started = permutations(model)
    trained(digits, recipe, model, seed).close()
    moved = (permutations(model) != started).sum() / max(1, len(started))
    return {
        "structure": name,
        "sparsity": sparsity,
        "permutation": kind,
        "seed": seed,
        "steps": recipe.steps,
        "accuracy": round(accuracy(model, digits), 4),
        "moved": round(float(moved), 4),
    }


def run(settings: Settings) -> Table:
    """Every structure, sparsity, kind and seed; one seed and few steps with `--quick`."""
    digits = load()
    recipe = Recipe(steps=QUICK_STEPS) if settings.quick else Recipe()
    rows = [
        row(digits, recipe, name, sparsity, kind, seed)
        for name in settings.only or NAMES
        for sparsity in SPARSITIES
        for kind in PERMUTATIONS
        for seed in range(1 if settings.quick else SEEDS)
    ]
    return Table(
        name="permutation_accuracy",
        title=f"digits ViT trained sparse by RigL, {recipe.steps} steps: test accuracy",
        rows=rows,
        shown=_shown(rows),
    )


def _shown(rows: list[Row]) -> tuple[list[str], list[list[str]]]:
    """Means and sample standard deviations over seeds."""
    groups: dict[tuple[str, ...], list[Row]] = {}
    for r in rows:
        key = (r["structure"], str(r["sparsity"]), r["permutation"])
        groups.setdefault(key, []).append(r)
    return ["structure", "sparsity", "permutation", "accuracy", "positions moved"], [
        [*key, _spread([r["accuracy"] for r in found]), f"{mean(r['moved'] for r in found):.0%}"]
        for key, found in groups.items()
    ]


def _spread(accuracies: list[float]) -> str:
    spread = f" +-{stdev(accuracies):.2%}" if len(accuracies) > 1 else ""
    return f"{mean(accuracies):.2%}{spread}"
