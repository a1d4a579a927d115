"""Growth scores by way of the dense gradient: exact over micro-batches and ranks, not small."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from padst_fx.structures.base import Pattern


@dataclass(frozen=True)
class DenseGradient:
    """Collects `G = grad^T x[:, perm]`, `[O, I]`, of one pattern in place of its norms.

    Norms of parts of a batch tell no norm of the whole; gradients add up. On scoring steps it takes
    the memory and the work of a dense weight gradient.
    """

    pattern: Pattern

    @property
    def adds_up(self) -> bool:
        """Whether what several passes collect may simply be added."""
        return True

    @property
    def probe_shape(self) -> tuple[int, ...]:
        """Shape of the probe, whose gradient is the dense gradient."""
        return (self.pattern.out_features, self.pattern.in_features)

    def probe(self, y: Tensor, x: Tensor, index: Tensor, perm: Tensor, probe: Tensor) -> Tensor:
        """A copy of `y` whose backward gives `probe` the dense gradient as its gradient."""
        return torch.ops.padst.dense_probe(y, x, perm, probe)

    def is_one_use(self, scores: Tensor) -> bool:
        """Whether a probe's gradient can be read: it always can."""
        return True

    def merge_growth(self, collected: Tensor, arrived: Tensor) -> Tensor:
        """The gradient of two backward passes together."""
        return collected + arrived

    def growth_candidates(self, scores: Tensor) -> tuple[Tensor, Tensor]:
        """The gradient's norm over every candidate `[groups, candidates]`, and their ids."""
        norms = self.pattern.unit_norms_of_dense(scores)
        missing = ~self.pattern.available().to(norms.device)
        ids = torch.arange(self.pattern.candidates, device=norms.device)
        return norms.masked_fill(missing, -1.0), ids.expand_as(norms)
