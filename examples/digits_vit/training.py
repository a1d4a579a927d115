"""Training one contestant from one seed, with mask updates between compiled steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

import padst_fx
from examples.digits_vit.contestants import Contestant
from examples.digits_vit.data import Digits
from examples.digits_vit.model import redraw


@dataclass(frozen=True)
class Recipe:
    """How long and how to train. Masks change every `delta_t` steps up to three quarters."""

    steps: int = 400
    batch: int = 64
    learning_rate: float = 3e-3
    weight_decay: float = 0.05
    delta_t: int = 20
    drop_fraction: float = 0.3


@dataclass(frozen=True)
class Trained:
    """What one training left: test accuracy, the optimizer, masks before and after by layer."""

    accuracy: float
    optimizer: torch.optim.Optimizer
    masks_before: dict[str, Tensor]
    masks_after: dict[str, Tensor]


def train(
    contestant: Contestant,
    digits: Digits,
    recipe: Recipe,
    seed: int,
    tick: Callable[[], object],
) -> Trained:
    """Redraw the contestant from `seed` and train it; `tick` is called after every step."""
    model = contestant.model
    redraw(model, seed)
    before = masks(contestant)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay
    )
    rate = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, recipe.learning_rate, total_steps=recipe.steps, pct_start=0.15
    )
    dst = _dst(contestant, optimizer, recipe, seed)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(recipe.steps):
        images, labels = digits.batch(recipe.batch, generator)
        step(contestant, optimizer, images, labels)
        rate.step()
        if dst is not None:
            dst.step()
        tick()
    return Trained(accuracy(contestant, digits), optimizer, before, masks(contestant))


def step(
    contestant: Contestant, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor
) -> None:
    """One compiled forward and backward, and the optimizer."""
    F.cross_entropy(contestant.compiled(images), labels).backward()
    optimizer.step()
    optimizer.zero_grad()


@torch.no_grad()
def accuracy(contestant: Contestant, digits: Digits) -> float:
    """The share of test images classified rightly. Runs eagerly: it needs no third graph."""
    predicted = contestant.model(digits.test_images).argmax(dim=1)
    return (predicted == digits.test_labels).double().mean().item()


def masks(contestant: Contestant) -> dict[str, Tensor]:
    """The mask `[out, in]` of every sparse projection."""
    return {
        name: layer.pattern.mask(layer.index)
        for name, layer in contestant.projections.items()
        if isinstance(layer, padst_fx.SparseLinear)
    }


def _dst(
    contestant: Contestant, optimizer: torch.optim.Optimizer, recipe: Recipe, seed: int
) -> padst_fx.DST | None:
    if not contestant.sparse:
        return None
    return padst_fx.DST(
        contestant.model,
        optimizer,
        method="rigl",
        delta_t=recipe.delta_t,
        t_end=max(1, recipe.steps * 3 // 4),
        drop_fraction=recipe.drop_fraction,
        seed=seed,
    )
