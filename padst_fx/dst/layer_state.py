"""What DST keeps per layer between steps."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from padst_fx.dst.exploration import Exploration
from padst_fx.layers.linear import SparseLinear
from padst_fx.saved_fields import check_fields, check_shape
from padst_fx.sharding import whole
from padst_fx.structures import Pattern
from padst_fx.structures.dense_gradient import DenseGradient

# The fields of a layer's saved state.
STATE: dict[str, Any] = {
    "pattern": str,
    "explored": Tensor,
    "growth": (Tensor, type(None)),
    "gradient_norms": (Tensor, type(None)),
}


@dataclass
class LayerState:
    """A sparse layer, the scores collected for its next update, and its exploration."""

    name: str
    layer: SparseLinear
    exploration: Exploration
    growth: Tensor | None = None
    gradient_norms: Tensor | None = None
    _handle: RemovableHandle | None = field(default=None, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        """A copy has no hook; its manager arms it again."""
        return {**self.__dict__, "_handle": None}

    @classmethod
    def of(
        cls, name: str, layer: SparseLinear, scorer: Pattern | DenseGradient
    ) -> LayerState:
        """Fresh state, for scores of the given kind: the present units count as explored."""
        exploration = Exploration(layer.pattern)
        layer.collect(scorer)
        state = cls(name, layer, exploration)
        exploration.add(state.units())
        return state

    def units(self) -> Tensor:
        """The active units, `[groups, active]`."""
        return self.layer.pattern.units_from_index(self.layer.index)

    def check_state(self, saved: dict[str, Any]) -> None:
        """Raise `ValueError` for the saved state of another pattern, and for a damaged one.

        Growth scores may name units, which kernels read without looking.
        """
        check_fields(f"{self.name}: not a layer's state", saved, STATE)
        pattern = self.layer.pattern
        if saved["pattern"] != repr(pattern):
            raise ValueError(
                f"{self.name}: the state is of {saved['pattern']}, the layer has {pattern}"
            )
        check_shape(f"{self.name}: explored", saved["explored"], self.exploration.bits.shape)
        if saved["explored"].dtype != torch.uint8:
            raise ValueError(f"{self.name}: explored is {saved['explored'].dtype}, not bits")
        check_shape(f"{self.name}: growth", saved["growth"], self.layer.scorer.probe_shape)
        norms = (pattern.groups, pattern.active)
        check_shape(f"{self.name}: gradient_norms", saved["gradient_norms"], norms)
        if saved["growth"] is not None:
            scores, units = self.layer.scorer.growth_candidates(saved["growth"])
            if not bool(((units >= 0) & (units < pattern.candidates) | (scores < 0)).all()):
                raise ValueError(f"{self.name}: growth is of units that do not exist")

    def arm(self) -> None:
        """Make the next forward of this layer a scoring one."""
        if self._handle is None:
            probe = self.layer.ask_for_scores()
            self._handle = probe.register_post_accumulate_grad_hook(self._collect)

    def disarm(self) -> None:
        """Back to plain forwards; the scores collected so far are forgotten."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None
        self.layer.ask_for_scores(False)
        self.forget()

    def forget(self) -> None:
        """Drop the scores collected so far."""
        self.layer.probe.grad = None
        self.growth = None
        self.gradient_norms = None

    def _collect(self, probe: Tensor) -> None:
        assert probe.grad is not None
        arrived, probe.grad = probe.grad.detach(), None
        scorer = self.layer.scorer
        if not scorer.is_one_use(arrived):
            raise RuntimeError(
                f"{self.name} ({self.layer.pattern.structure}) was used more than once in one "
                "backward; the growth scores of N:M cannot be added up. Use method 'set', 'mest' "
                "or 'rigl_exact', or exclude it"
            )
        self.growth = (
            arrived if self.growth is None else scorer.merge_growth(self.growth, arrived)
        )

    def growth_candidates(self) -> tuple[Tensor, Tensor]:
        """Growth scores `[groups, C]` and the ids of the candidates they belong to."""
        assert self.growth is not None
        return self.layer.scorer.growth_candidates(self.growth)

    def capture_gradient(self) -> None:
        """Remember the unit norms of the values' gradient."""
        gradient = self.layer.values.grad
        if gradient is not None:
            pattern, index = self.layer.pattern, self.layer.index
            self.gradient_norms = pattern.unit_norms(whole(gradient), index)

    def magnitudes(self) -> Tensor:
        """Unit norms of the values, `[groups, active]`."""
        return self.layer.pattern.unit_norms(whole(self.layer.values), self.layer.index)

    def random_candidates(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Uniform growth scores for every candidate, and the candidates' ids."""
        pattern, device = self.layer.pattern, self.layer.values.device
        shape = (pattern.groups, pattern.candidates)
        scores = torch.rand(shape, generator=generator, device="cpu")
        scores.masked_fill_(~pattern.available(), -1.0)
        ids = torch.arange(pattern.candidates, device="cpu").expand_as(scores)
        return scores.to(device), ids.to(device)
