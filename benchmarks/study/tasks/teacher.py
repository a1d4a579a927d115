"""A sparse teacher behind permutations: a student of its own kind can match it exactly."""

from __future__ import annotations

from functools import cache
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import padst_fx
from benchmarks.study.tasks.task import Task, place
from padst_fx import Structure

TEACHER_SPARSITY = 0.9
EVALUATED = 4096
CORRELATION = 0.9


class Teacher(Task):
    """Squared error over the variance of the teacher's outputs; 0 is the known optimum.

    The teacher has `layers` projections of `size` features, 90 % sparse in `structure`, each
    behind a random permutation, and a ReLU between two. Inputs are correlated as neighbours are,
    by 0.9 to the power of their distance. Every seed has a teacher of its own.
    """

    metric: ClassVar[str] = "relative error"
    higher_is_better: ClassVar[bool] = False
    batch: ClassVar[int] = 256

    def __init__(self, structure: Structure, layers: int) -> None:
        self._structure = structure
        self._layers = layers
        self._size = 0

    def model(self, size: int) -> nn.Module:
        # With a last layer that is no head to the finder of projections: all layers count.
        return Chain(size, self._layers)

    def check_size(self, size: int, sparsity: float) -> None:
        self._size = size

    def inputs(self, seed: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        x = torch.randn(self.batch, self._size, generator=generator) @ _mixing(self._size)
        return x, self._targets(seed, x)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return F.mse_loss(outputs, targets)

    @torch.no_grad()
    def evaluate(self, model: nn.Module, seed: int) -> float:
        generator = torch.Generator().manual_seed(2**31)
        x = torch.randn(EVALUATED, self._size, generator=generator) @ _mixing(self._size)
        targets = self._targets(seed, x)
        variance = (targets - targets.mean(0)).square().sum()
        return float((model(x.to(place(model))).cpu() - targets).square().sum() / variance)

    @torch.no_grad()
    def _targets(self, seed: int, x: Tensor) -> Tensor:
        targets: Tensor = _teacher(self._structure, self._size, self._layers, seed)(x)
        return targets


class Chain(nn.Module):
    """Square projections with a ReLU between two."""

    def __init__(self, size: int, layers: int) -> None:
        super().__init__()
        self.projections = nn.ModuleList(nn.Linear(size, size) for _ in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        first, *others = self.projections
        y: Tensor = first(x)
        for projection in others:
            y = projection(F.relu(y))
        return y


@cache
def _mixing(size: int) -> Tensor:
    place = torch.arange(size, dtype=torch.float64)
    covariance = CORRELATION ** (place[:, None] - place).abs()
    return torch.linalg.cholesky(covariance).t().float()


@cache
def _teacher(structure: Structure, size: int, layers: int, seed: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(10_000 + seed)
        return padst_fx.sparsify(
            Chain(size, layers), structure, TEACHER_SPARSITY, permutation="random", init="random",
            include="*",
        ).requires_grad_(False)  # fmt: skip
