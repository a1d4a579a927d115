"""What a task of the study is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor, nn


def place(model: nn.Module) -> torch.device:
    """Where a model's parameters are."""
    return next(model.parameters()).device


class Task(ABC):
    """A model, data and a measure. `higher_is_better` says how to read the measure `metric`;
    `exclude` are globs over projections that stay dense in every run."""

    metric: ClassVar[str]
    higher_is_better: ClassVar[bool]
    batch: ClassVar[int]
    exclude: tuple[str, ...] = ()

    @abstractmethod
    def model(self, size: int) -> nn.Module:
        """A fresh dense model drawn from torch's generator; `size` is its width."""

    @abstractmethod
    def inputs(self, seed: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """The next training batch of the run with this seed, and its targets."""

    @abstractmethod
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """What training lowers."""

    @abstractmethod
    def evaluate(self, model: nn.Module, seed: int) -> float:
        """The metric on data that was not trained on, computed where the model is."""

    def check_size(self, size: int, sparsity: float) -> None:
        """Called once before a run, for tasks whose data depend on both."""
        return
