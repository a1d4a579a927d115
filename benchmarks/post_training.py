"""What a trained model keeps when it is made sparse at once, with and without permutations.

The digits vision transformer of the examples is trained dense; its eight projections are then
replaced. Accuracy is that on the test images, at once and after a short training with these masks.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import nn

import padst_fx
from benchmarks.settings import Settings
from benchmarks.table import Row, Table
from examples.digits_vit.data import Digits, load
from examples.digits_vit.model import VisionTransformer

STRUCTURES: dict[str, padst_fx.Structure] = {
    "Diag()": padst_fx.Diag(),
    "Diag(width=4)": padst_fx.Diag(width=4),
    "Block(4)": padst_fx.Block(4),
    "NM(tile=1)": padst_fx.NM(),
}
SPARSITIES = (0.5, 0.75, 0.9)
PROJECTIONS = "blocks.*"
STEPS, QUICK_STEPS, TUNED_SHARE, BATCH, CALIBRATION = 1000, 50, 0.1, 64, 256


def trained(digits: Digits, seed: int, steps: int) -> nn.Module:
    """A dense model, trained."""
    torch.manual_seed(seed)
    return train(VisionTransformer(), digits, seed, steps)


def train(model: nn.Module, digits: Digits, seed: int, steps: int) -> nn.Module:
    """The model itself after that many steps."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.05)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps, pct_start=0.15)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        images, labels = digits.batch(BATCH, generator)
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
        optimizer.zero_grad()
        rate.step()
    return model


@torch.no_grad()
def accuracy(model: nn.Module, digits: Digits) -> float:
    """The share of test images classified rightly."""
    return (model(digits.test_images).argmax(1) == digits.test_labels).double().mean().item()


def row(
    dense: nn.Module, digits: Digits, seed: int, steps: int, name: str, sparsity: float, how: str
) -> Row:
    """One structure at one sparsity, tuned for so many steps; `how` is "identity" or "learned",
    "+ calibration" or not."""
    permutation, _, calibrated = how.partition(" + ")
    model = copy.deepcopy(dense)
    padst_fx.sparsify(
        model,
        STRUCTURES[name],
        sparsity,
        permutation=permutation,
        include=PROJECTIONS,
        init="magnitude",
        calibration=digits.train_images[:CALIBRATION] if calibrated else None,
    )
    kept = total = 0.0
    for path, layer in model.named_modules():
        if isinstance(layer, padst_fx.SparseLinear):
            kept += float(layer.dense_weight().square().sum())
            total += float(dense.get_submodule(path).weight.detach().square().sum())  # type: ignore[operator]
    at_once = accuracy(model, digits)
    return {
        "seed": seed,
        "structure": name,
        "sparsity": sparsity,
        "permutation": permutation,
        "calibration": bool(calibrated),
        "dense_accuracy": round(accuracy(dense, digits), 4),
        "accuracy": round(at_once, 4),
        "tuned_accuracy": round(accuracy(train(model, digits, seed, steps), digits), 4),
        "kept": round(kept / total, 4),
    }


HOW = ("identity", "learned", "identity + calibration", "learned + calibration")


def run(settings: Settings) -> Table:
    """Every structure and sparsity, three trainings (one with `--quick`)."""
    digits = load()
    rows: list[Row] = []
    for seed in range(1 if settings.quick else 3):
        steps = QUICK_STEPS if settings.quick else STEPS
        dense = trained(digits, seed, steps)
        rows += [
            row(dense, digits, seed, round(TUNED_SHARE * steps), name, sparsity, how)
            for name in STRUCTURES
            for sparsity in SPARSITIES
            for how in HOW
        ]
    return Table(
        name="post_training",
        title="digits ViT made sparse: accuracy at once and tuned for 100 steps, energy kept",
        rows=rows,
        shown=_shown(rows),
    )


def _shown(rows: list[Row]) -> tuple[list[str], list[list[str]]]:
    """Means over seeds."""
    groups: dict[tuple[str, ...], list[Row]] = {}
    for r in rows:
        calibrated = "yes" if r["calibration"] else "no"
        key = (r["structure"], str(r["sparsity"]), r["permutation"], calibrated)
        groups.setdefault(key, []).append(r)
    numbers = ("dense_accuracy", "accuracy", "tuned_accuracy", "kept")
    columns = ["structure", "sparsity", "permutation", "calibration"]
    return [*columns, "dense", "accuracy", "tuned", "kept"], [
        [*key, *(f"{_mean(found, name):.1%}" for name in numbers)]
        for key, found in groups.items()
    ]


def _mean(rows: list[Row], name: str) -> float:
    return sum(r[name] for r in rows) / len(rows)
