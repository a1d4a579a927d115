"""How steep the loss is in a layer's weights, from what training made of earlier ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

MEMORY = 0.5


@dataclass
class Curvature:
    """A secant through the weights of considered columns between two updates.

    Where they wanted a change of `u` then and of `v` now that training has changed them by `d`, the
    curvature is `(u - v) . d / d . d`. Both products are remembered with the
    factor `MEMORY` an observation.
    """

    product: float = 0.0
    energy: float = 0.0

    def observe(self, before: Tensor, now: Tensor, trained: Tensor) -> None:
        """One more observation, `(u, v, d)`, from 1-d tensors over the same weights."""
        self.product = MEMORY * self.product + float((before - now) @ trained)
        self.energy = MEMORY * self.energy + float(trained @ trained)

    @property
    def value(self) -> float | None:
        """The estimate, None while there is none that is positive."""
        return self.product / self.energy if self.product > 0 and self.energy > 0 else None

    def state_dict(self) -> dict[str, Any]:
        return {"product": self.product, "energy": self.energy}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.product, self.energy = state_dict["product"], state_dict["energy"]
