"""A `DST` whose loop belongs to another library: made from settings, restored, and reported."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from padst_fx.dst import DST, LearnedPermutation, SoftPermutation, Update
from padst_fx.dst.manager import trainable_layers


@dataclass(frozen=True)
class Settings:
    """The arguments of `padst_fx.DST` as callbacks take them.

    `t_end` is a number of steps, or a share of all the training's (a float in (0, 1]). Raises
    `ValueError` for one that is neither.
    """

    method: str = "rigl"
    delta_t: int = 100
    t_end: int | float = 0.75
    drop_fraction: float = 0.3
    schedule: str = "cosine"
    seed: int = 0
    learned: LearnedPermutation | None = None
    soft: SoftPermutation | None = None

    def __post_init__(self) -> None:
        if isinstance(self.t_end, float) and not 0 < self.t_end <= 1:
            raise ValueError(
                f"t_end is a number of steps or a share of them in (0, 1], got {self.t_end!r}"
            )

    def needs_steps(self) -> bool:
        """Whether `make` has to know how many steps the training has."""
        return isinstance(self.t_end, float)

    def make(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, steps: float | None
    ) -> DST:
        """The `DST` of a training of so many optimizer steps (None or infinite: unknown)."""
        t_end = self.t_end
        if isinstance(t_end, float):
            if steps is None or not math.isfinite(steps) or steps < 1:
                raise ValueError(
                    f"t_end={t_end} is a share of the training's steps, but nobody knows how many "
                    "these are; give t_end as a number of steps"
                )
            t_end = max(1, round(t_end * steps))
        dst = DST(
            model,
            optimizer,
            self.method,
            self.delta_t,
            t_end,
            self.drop_fraction,
            self.schedule,
            self.seed,
            learned=self.learned,
            soft=self.soft,
        )
        if self.delta_t >= t_end:
            warnings.warn(
                f"masks will never change: the first update is due at step {self.delta_t} "
                f"(delta_t), the last before step {t_end} (t_end)",
                stacklevel=3,
            )
        return dst


def adds_parameters(model: nn.Module, method: str) -> bool:
    """Whether a DST of this method puts a group of its own into the optimizer.

    Raises `ValueError` for a model without trainable sparse layers.
    """
    layers = trainable_layers(model)
    return method == "dynadiag" or any(layer.permutation == "soft" for _, layer in layers)


def go_on(dst: DST, state: Any, source: str) -> None:
    """Load a state out of a checkpoint. Raises `ValueError`, with the `DST` unchanged, if it has
    none (None) or one that does not fit."""
    if state is None:
        raise ValueError(
            f"{source} has no state of a DST: it was saved by a training without DSTCallback. "
            "Load its weights into the model and start a new training"
        )
    try:
        dst.load_state_dict(state)
    except (ValueError, TypeError) as error:
        raise ValueError(f"the state of the DST in {source} does not fit: {error}") from error


def start_metrics(dst: DST, layers: bool) -> dict[str, float]:
    """What there is to log before the first step: sparsities."""
    metrics = {"sparsity/exploration": dst.exploration}
    if layers:
        for state in dst.states:
            metrics[f"sparsity/{state.name}/sparsity"] = state.layer.sparsity
    return metrics


def update_metrics(dst: DST, update: Update, layers: bool) -> dict[str, float]:
    """What there is to log after an update; of every layer too if asked for."""
    metrics: dict[str, float] = {
        "sparsity/exploration": dst.exploration,
        "sparsity/drop_fraction": update.drop_fraction,
        "sparsity/grown": update.grown,
    }
    changes = [permutation.change_rate for permutation in update.permutations]
    if changes:
        metrics["sparsity/permutation_change"] = sum(changes) / len(changes)
    if update.soft is not None:
        metrics["sparsity/permutation_penalty"] = _mean(list(update.soft.penalties.values()))
        metrics["sparsity/permutations_hardened"] = len(update.soft.hardened)
    if layers:
        metrics |= _layer_metrics(update)
    return metrics


def _layer_metrics(update: Update) -> dict[str, float]:
    metrics: dict[str, float] = {}
    for layer in update.layers:
        metrics[f"sparsity/{layer.name}/exploration"] = layer.exploration
    for permutation in update.permutations:
        metrics[f"sparsity/{permutation.name}/permutation_change"] = permutation.change_rate
        metrics[f"sparsity/{permutation.name}/permutation_distance"] = permutation.distance
    if update.soft is not None:
        for name, penalty in update.soft.penalties.items():
            metrics[f"sparsity/{name}/permutation_penalty"] = penalty
            metrics[f"sparsity/{name}/permutation_distance"] = update.soft.distances[name]
    return metrics


def _mean(numbers: Sequence[float]) -> float:
    return sum(numbers) / len(numbers) if numbers else 0.0
