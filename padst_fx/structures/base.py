"""What a structure is: a family of masks, and its units once bound to a shape."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import prod
from numbers import Real
from typing import Any, ClassVar

import torch
from torch import Tensor


class StructureError(ValueError):
    """A structure cannot be had: bad parameters, or dimensions it does not divide."""


@dataclass(frozen=True)
class Structure(ABC):
    """A family of masks. Parameters are checked when it is made."""

    name: ClassVar[str]

    @property
    def usual_permutation(self) -> str:
        """What `sparsify` puts before it where weights are fresh, unless told (docs/study.md)."""
        return "identity"

    @abstractmethod
    def bind(self, out_features: int, in_features: int, sparsity: float | None) -> Pattern:
        """This structure on an `[out, in]` matrix, with the active count that `sparsity` asks for.

        Raises `StructureError` where the dimensions are not divided, and `ValueError` for a
        sparsity outside [0, 1).
        """

    @abstractmethod
    def pattern(self, out_features: int, in_features: int, active: int) -> Pattern:
        """This structure on an `[out, in]` matrix with `active` units in every group.

        Raises `StructureError` where the dimensions are not divided or the count is impossible.
        """

    def config(self) -> dict[str, Any]:
        """The parameters as plain data, with the structure's name."""
        return {"name": self.name, **asdict(self)}


def check_sparsity(sparsity: float | None) -> float:
    """The sparsity as a float in [0, 1), or a `ValueError`."""
    if isinstance(sparsity, bool) or not isinstance(sparsity, Real):
        raise ValueError(f"sparsity must be a number in [0, 1), got {sparsity!r}")
    if not 0 <= sparsity < 1:
        hint = " (sparsity is the fraction of zeros, not the density)" if sparsity == 1 else ""
        raise ValueError(f"sparsity must be in [0, 1), got {sparsity}{hint}")
    return float(sparsity)


def check_positive(owner: str, **parameters: int) -> None:
    """Raise `StructureError` unless every parameter is a positive integer."""
    for name, value in parameters.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise StructureError(f"{owner}: {name} must be a positive integer, got {value!r}")


def check_active(pattern: Pattern) -> None:
    """Raise `StructureError` unless the pattern's active count is possible."""
    if not 1 <= pattern.active <= pattern.capacity:
        raise StructureError(
            f"{pattern.structure} on {pattern.out_features} x {pattern.in_features} takes 1 to "
            f"{pattern.capacity} active units in a group, got {pattern.active}"
        )


def check_divides(owner: str, divisor: int, **dimensions: int) -> None:
    """Raise `StructureError` unless `divisor` divides every dimension."""
    for name, value in dimensions.items():
        if value % divisor:
            raise StructureError(f"{owner} does not divide {name}={value}")


@dataclass(frozen=True)
class Pattern(ABC):
    """A structure bound to an `[out, in]` shape. It holds sizes only, no tensors.

    Units are arranged in `groups` rows of `candidates` each, of which `active` are on; an
    update keeps the number in every group. A set of units is an int64 tensor
    `[groups, active]` of candidate ids, ascending in each row.
    """

    structure: Structure
    out_features: int
    in_features: int
    active: int

    def __post_init__(self) -> None:
        check_active(self)

    def with_active(self, active: int) -> Pattern:
        """The same with another number of active units in every group."""
        return self.structure.pattern(self.out_features, self.in_features, active)

    @property
    @abstractmethod
    def groups(self) -> int: ...

    @property
    @abstractmethod
    def candidates(self) -> int: ...

    @property
    @abstractmethod
    def values_shape(self) -> tuple[int, ...]: ...

    @property
    @abstractmethod
    def index_shape(self) -> tuple[int, ...]: ...

    @property
    @abstractmethod
    def probe_shape(self) -> tuple[int, ...]:
        """Shape of the probe, whose gradient is the growth score."""

    @property
    def index_dtype(self) -> torch.dtype:
        return torch.int32

    @property
    def adds_up(self) -> bool:
        """Whether growth scores of several passes may simply be added."""
        return True

    @property
    @abstractmethod
    def kernel(self) -> str:
        """Name of the op that computes it."""

    @property
    def capacity(self) -> int:
        """The largest possible `active`."""
        return self.candidates

    @property
    def grain(self) -> int:
        """Weights gained when every group gets one more unit: the step of `active`."""
        return self.nonzeros // self.active

    @property
    def nonzeros(self) -> int:
        """Number of weights that may be non-zero."""
        return prod(self.values_shape)

    @property
    def sparsity(self) -> float:
        """The sparsity really had, after rounding to whole units."""
        return 1 - self.nonzeros / (self.out_features * self.in_features)

    def available(self) -> Tensor:
        """Which candidates exist: bool `[groups, candidates]`, expanded where all do."""
        one = torch.ones(1, 1, dtype=torch.bool, device="cpu")
        return one.expand(self.groups, self.candidates)

    def random_units(self, generator: torch.Generator | None = None) -> Tensor:
        """A uniform choice of `active` units in every group, `[groups, active]`."""
        shape = (self.groups, self.candidates)
        return self.strongest_units(
            torch.rand(shape, generator=generator, dtype=torch.float64, device="cpu")
        )

    def strongest_units(self, scores: Tensor) -> Tensor:
        """The `active` units of highest score in every group; ties go to the lower id."""
        scores = scores.masked_fill(~self.available().to(scores.device), -torch.inf)
        order = scores.argsort(dim=1, descending=True, stable=True)
        return order[:, : self.active].sort(dim=1).values

    @abstractmethod
    def unit_norms_of_dense(self, weight: Tensor) -> Tensor:
        """L2 norm of a dense `[out, in]` matrix over every candidate: `[groups, candidates]`."""

    @abstractmethod
    def index_from_units(self, units: Tensor) -> Tensor:
        """The index buffer that the ops read."""

    @abstractmethod
    def units_from_index(self, index: Tensor) -> Tensor:
        """The active units, `[groups, active]` int64."""

    @abstractmethod
    def unit_view(self, tensor: Tensor) -> Tensor:
        """A tensor of `values_shape` seen as `[groups, active, ...]`, sharing its storage."""

    @abstractmethod
    def coordinates(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Row and column of every entry of `values`, each of `values_shape`, int64."""

    @abstractmethod
    def linear(
        self,
        x: Tensor,
        values: Tensor,
        index: Tensor,
        perm: Tensor,
        bias: Tensor,
        activation: str = "none",
    ) -> Tensor:
        """`act(S (Pi x) + b)` through the ops; `perm` and `bias` of length 0 are absent."""

    @abstractmethod
    def probe(self, y: Tensor, x: Tensor, index: Tensor, perm: Tensor, probe: Tensor) -> Tensor:
        """A copy of `y` whose backward gives `probe` the growth scores as its gradient."""

    def is_index(self, index: Tensor) -> bool:
        """Whether an index of the right shape names units that exist, distinct and in order."""
        try:
            units = self.units_from_index(index)
        except RuntimeError:
            return False
        if not bool(((units >= 0) & (units < self.candidates)).all()):
            return False
        ascending = bool((units[:, 1:] > units[:, :-1]).all())
        exist = bool(self.available().to(units.device).gather(1, units).all())
        return ascending and exist and torch.equal(self.index_from_units(units), index)

    def growth_candidates(self, scores: Tensor) -> tuple[Tensor, Tensor]:
        """Growth scores `[groups, C]` and the unit ids they belong to, from a probe's gradient."""
        scores = scores.reshape(self.groups, self.candidates)
        ids = torch.arange(self.candidates, device=scores.device).expand_as(scores)
        return scores, ids

    def is_one_use(self, scores: Tensor) -> bool:
        """Whether a probe's gradient can be read: not a sum over uses where sums mean nothing."""
        return True

    def merge_growth(self, collected: Tensor, arrived: Tensor) -> Tensor:
        """Growth scores of two backward passes as one: norms add up."""
        return collected + arrived

    def unit_norms(self, tensor: Tensor, index: Tensor) -> Tensor:
        """L2 norm of every active unit of a tensor of `values_shape`: `[groups, active]`."""
        return self.unit_view(tensor.detach()).float().flatten(2).norm(dim=2)

    def values_from_dense(self, weight: Tensor, index: Tensor) -> Tensor:
        """The entries of a dense `[out, in]` matrix that lie in the mask."""
        return weight[self.coordinates(index)]

    def dense(self, values: Tensor, index: Tensor) -> Tensor:
        """The dense `[out, in]` matrix S."""
        matrix = values.new_zeros(self.out_features, self.in_features)
        return matrix.index_put(self.coordinates(index), values)

    def mask(self, index: Tensor) -> Tensor:
        """The mask as a bool `[out, in]` tensor."""
        return self.dense(torch.ones(self.values_shape, device=index.device), index).bool()

    def rearrange(self, tensors: Sequence[Tensor], old: Tensor, new: Tensor) -> None:
        """Move units in place: kept ones to their new places, grown ones zero.

        Works on parameters and optimizer slots alike: anything of `values_shape`. All memory is
        had before anything changes.
        """
        position = torch.searchsorted(old, new).clamp_(max=self.active - 1)
        kept = old.gather(1, position) == new
        groups = torch.arange(self.groups, device=old.device)[:, None]
        views = [self.unit_view(tensor.detach()) for tensor in tensors]
        moved = [view[groups, position] for view in views]
        for units in moved:
            units[~kept] = 0
        for view, units in zip(views, moved, strict=True):
            view.copy_(units)
