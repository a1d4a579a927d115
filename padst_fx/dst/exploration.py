"""Which units were ever active: the in-time over-parametrisation of ITOP (arXiv:2102.02887)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from padst_fx.structures import Pattern


class Exploration:
    """A bit per candidate unit, set once the unit has been active."""

    def __init__(self, pattern: Pattern) -> None:
        self.candidates = pattern.candidates
        self.total = int(pattern.available().sum())
        self.bits = np.zeros(-(-pattern.groups * pattern.candidates // 8), dtype=np.uint8)

    def add(self, units: Tensor) -> None:
        """Mark `[groups, active]` units."""
        group = torch.arange(units.shape[0], device="cpu")[:, None] * self.candidates
        flat = (units.cpu() + group).view(-1).numpy()
        np.bitwise_or.at(self.bits, flat >> 3, np.uint8(1) << (flat & 7).astype(np.uint8))

    @property
    def rate(self) -> float:
        """The share of units ever active, in (0, 1]."""
        return int(np.unpackbits(self.bits).sum()) / self.total
