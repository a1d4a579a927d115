"""What an update did, per layer."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LayerUpdate:
    """One layer's part in an update.

    `dropped` and `grown` count units; the ranges are (lowest, highest) score of the dropped and
    of the grown, None where none were; `exploration` is the share of units ever active.
    """

    name: str
    dropped: int
    grown: int
    drop_range: tuple[float, float] | None
    growth_range: tuple[float, float] | None
    exploration: float


@dataclass(frozen=True)
class PermutationUpdate:
    """One layer's permutation after an update.

    `considered` positions were looked at and `moved` of them read another feature than before;
    `change_rate` is `moved` over all positions, `distance` the share of positions that do not
    read the feature of their own number: 0 for the identity, nearly 1 for a shuffle.
    """

    name: str
    considered: int
    moved: int
    change_rate: float
    distance: float


@dataclass(frozen=True)
class SoftUpdate:
    """What an update found of the soft permutations.

    `penalties`: of each layer that was soft before it, per row and column (0 on a permutation);
    `distances`: of the same layers, the share of the matrix off its diagonal, 0 for the identity,
    nearly 1 for a shuffle; `hardened` names those hardened by it; `events` counts the updates so
    far that hardened layers, `recompilations` how often at most these had a compiled model compiled
    anew (each once for every graph that later steps use), `put_off` the layers so far that could
    not be hardened for entries not finite.
    """

    penalties: dict[str, float]
    distances: dict[str, float]
    hardened: tuple[str, ...]
    events: int
    recompilations: int
    put_off: int


@dataclass(frozen=True)
class Update:
    """An update: the step it happened at, the drop fraction there, and every layer's part.

    `skipped` names the layers for which no score had arrived; `soft` is None where no
    permutation was soft. An update that changed permutations alone has no layers.
    """

    step: int
    drop_fraction: float
    layers: tuple[LayerUpdate, ...]
    skipped: tuple[str, ...]
    permutations: tuple[PermutationUpdate, ...] = ()
    soft: SoftUpdate | None = None

    @property
    def dropped(self) -> int:
        """Units dropped in all layers."""
        return sum(layer.dropped for layer in self.layers)

    @property
    def moved(self) -> int:
        """Positions of learned permutations that read another feature than before."""
        return sum(permutation.moved for permutation in self.permutations)

    @property
    def grown(self) -> int:
        """Units grown in all layers."""
        return sum(layer.grown for layer in self.layers)
