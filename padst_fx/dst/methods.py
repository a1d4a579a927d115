"""The DST methods: each gives scores, none knows how units are exchanged."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor, nn

from padst_fx.dst.layer_state import LayerState
from padst_fx.dst.optimizer_state import move_to_own_group, slots
from padst_fx.layers.linear import SparseLinear, soft_top_k
from padst_fx.sharding import whole_tensors
from padst_fx.structures import Pattern
from padst_fx.structures.dense_gradient import DenseGradient
from padst_fx.structures.diag import DiagPattern


class Method(ABC):
    """Scores for one layer: active units of low drop score go, candidates of high growth score
    come. `needs_growth` asks for scoring steps, `needs_gradient` for the values' gradient."""

    needs_growth: ClassVar[bool] = False
    needs_gradient: ClassVar[bool] = False

    @abstractmethod
    def drop_scores(self, state: LayerState) -> Tensor:
        """`[groups, active]`."""

    @abstractmethod
    def growth_scores(
        self, state: LayerState, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Scores `[groups, C]` and the candidates' ids; negative scores are no candidates."""

    def scorer(self, pattern: Pattern) -> Pattern | DenseGradient:
        """What scoring steps collect for a layer of this pattern."""
        return pattern

    def prepare(
        self, layers: list[tuple[str, SparseLinear]], optimizer: torch.optim.Optimizer
    ) -> None:
        """Called once before training; changes nothing if it raises."""
        return

    def added_parameters(self, layer: SparseLinear) -> list[nn.Parameter]:
        """Parameters that `prepare` gave the layer."""
        return []

    def begin_step(self, layer: SparseLinear, progress: float) -> None:
        """Called per layer at every step; `progress` runs from 0 to 1 at t_end."""
        return

    def after_update(
        self, state: LayerState, optimizer: torch.optim.Optimizer, old: Tensor, new: Tensor
    ) -> None:
        """Called per layer after its units were exchanged."""
        return


class SET(Method):
    """Magnitude drop, random growth (arXiv:1707.04780)."""

    def drop_scores(self, state: LayerState) -> Tensor:
        return state.magnitudes()

    def growth_scores(
        self, state: LayerState, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        return state.random_candidates(generator)


class RigL(Method):
    """Magnitude drop, gradient growth (arXiv:1911.11134)."""

    needs_growth = True

    def drop_scores(self, state: LayerState) -> Tensor:
        return state.magnitudes()

    def growth_scores(
        self, state: LayerState, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        return state.growth_candidates()


class ExactRigL(RigL):
    """RigL by the norms of the whole batch's gradient: the dense gradient is summed over
    micro-batches and ranks before norms are taken."""

    def scorer(self, pattern: Pattern) -> DenseGradient:
        return DenseGradient(pattern)


class MEST(SET):
    """Drop by magnitude plus weighted gradient magnitude, random growth (arXiv:2110.14032)."""

    needs_gradient = True
    GRADIENT_WEIGHT = 1.0

    def drop_scores(self, state: LayerState) -> Tensor:
        assert state.gradient_norms is not None
        return state.magnitudes() + self.GRADIENT_WEIGHT * state.gradient_norms


class DynaDiag(Method):
    """A trainable score per candidate diagonal with an annealed soft top-k (arXiv:2506.11449).

    The scores `alpha` scale the active diagonals by `min(K softmax(alpha / T), 1)` in the
    forward and are trained with the model. An update drops the active diagonals of lowest
    alpha. Candidates grow by alpha plus their gradient norm relative to the largest (the paper
    keeps values for all candidates, so its alphas get gradients everywhere; here inactive
    diagonals have no values, and the norm says what one could gain). A grown diagonal starts
    with the lowest alpha among the kept ones.
    """

    needs_growth = True
    FIRST_TEMPERATURE = 0.2
    LAST_TEMPERATURE = 0.05

    def prepare(
        self, layers: list[tuple[str, SparseLinear]], optimizer: torch.optim.Optimizer
    ) -> None:
        for name, layer in layers:
            if not isinstance(layer.pattern, DiagPattern):
                raise ValueError(
                    f"method 'dynadiag' needs the structure Diag, but {name} has "
                    f"{layer.pattern.structure}; valid there: 'set', 'rigl', 'rigl_exact', 'mest'"
                )
        for _, layer in layers:
            if layer.alpha is None:
                self._start(layer)
        alphas = {f"{name}.alpha": layer.enable_scores() for name, layer in layers}
        move_to_own_group(optimizer, alphas, weight_decay=0.0)

    @torch.no_grad()
    def _start(self, layer: SparseLinear) -> None:
        """Scores for a layer, with values such that it computes what it did."""
        alpha = layer.enable_scores()
        self.begin_step(layer, 0.0)
        assert isinstance(layer.pattern, DiagPattern) and layer.temperature is not None
        scale = soft_top_k(alpha, layer.pattern.active, layer.temperature)
        with whole_tensors([layer.values]) as [values]:
            values.copy_(layer.pattern.scale_values(values, layer.index, 1 / scale))

    def added_parameters(self, layer: SparseLinear) -> list[nn.Parameter]:
        return [] if layer.alpha is None else [layer.alpha]

    def begin_step(self, layer: SparseLinear, progress: float) -> None:
        """Anneal the temperature along a cosine."""
        warmth = (1 + math.cos(math.pi * min(1.0, progress))) / 2
        span = self.FIRST_TEMPERATURE - self.LAST_TEMPERATURE
        assert layer.temperature is not None
        layer.temperature.fill_(self.LAST_TEMPERATURE + span * warmth)

    def drop_scores(self, state: LayerState) -> Tensor:
        alpha = self._alpha(state.layer)
        return alpha[state.units()]

    def growth_scores(
        self, state: LayerState, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        gradient, ids = state.growth_candidates()
        alpha = self._alpha(state.layer)
        relative = gradient / gradient.amax().clamp(min=torch.finfo(gradient.dtype).tiny)
        return relative + (alpha - alpha.amin()), ids

    @torch.no_grad()
    def after_update(
        self, state: LayerState, optimizer: torch.optim.Optimizer, old: Tensor, new: Tensor
    ) -> None:
        alpha = state.layer.alpha
        assert alpha is not None
        grown = new[~torch.isin(new, old)]
        kept = new[torch.isin(new, old)]
        if kept.numel():
            alpha[grown] = alpha[kept].min()
        for slot, fresh in slots(optimizer, f"{state.name}.alpha", alpha):
            slot[grown] = fresh

    @staticmethod
    def _alpha(layer: SparseLinear) -> Tensor:
        assert layer.alpha is not None
        return layer.alpha.detach()


METHODS: dict[str, type[Method]] = {
    "set": SET,
    "rigl": RigL,
    "rigl_exact": ExactRigL,
    "mest": MEST,
    "dynadiag": DynaDiag,
}
