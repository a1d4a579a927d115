"""Wrapped diagonals of weights or of dense blocks (DynaDiag, arXiv:2506.11449, section 3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from padst_fx.structures.base import (
    Pattern,
    Structure,
    check_divides,
    check_positive,
    check_sparsity,
)


@dataclass(frozen=True)
class Diag(Structure):
    """Wrapped diagonals: of weights (`width=1`) or of dense `width x width` blocks.

    An `[O, I]` matrix has `P = max(O, I) / width` candidate diagonals of
    `D = min(O, I) / width` entries; together they tile it exactly once. Diagonal `d`, entry
    `t` lies at `((t + d) mod P, t)` if `O >= I`, else at `(t, (t + d) mod P)`. `run` adjacent
    diagonals make one unit. `max(1, round((1 - sparsity) P / run))` units are active.
    """

    width: int = 1
    run: int = 1
    name: ClassVar[str] = "diag"

    def __post_init__(self) -> None:
        check_positive("Diag", width=self.width, run=self.run)

    @property
    def usual_permutation(self) -> str:
        return "learned" if self.width > 1 else "identity"

    def bind(self, out_features: int, in_features: int, sparsity: float | None) -> DiagPattern:
        density = 1 - check_sparsity(sparsity)
        candidates = max(out_features, in_features) // (self.width * self.run)
        return self.pattern(out_features, in_features, max(1, round(density * candidates)))

    def pattern(self, out_features: int, in_features: int, active: int) -> DiagPattern:
        check_divides(
            f"Diag(width={self.width})", self.width, out=out_features, **{"in": in_features}
        )
        diagonals = max(out_features, in_features) // self.width
        check_divides(f"Diag(run={self.run})", self.run, diagonals=diagonals)
        return DiagPattern(self, out_features, in_features, active)


@dataclass(frozen=True)
class DiagPattern(Pattern):
    """`Diag` on a shape. Width 1: values `[K, D]`, index the offsets `[K]`, op `shift`.

    Wider: values `[D, K, width, width]` and index `[D, K]`, the block each entry reads (wide
    matrices, op `gather_gemm`) or writes (tall and square ones, op `scatter_gemm`); the third
    axis of values runs along the listed side, the fourth along the other.
    """

    structure: Diag

    @property
    def tall(self) -> bool:
        """Whether diagonals run along the columns (`O >= I`)."""
        return self.out_features >= self.in_features

    @property
    def diagonals(self) -> int:
        """P, the number of candidate diagonals."""
        return max(self.out_features, self.in_features) // self.structure.width

    @property
    def length(self) -> int:
        """D, the entries of a diagonal."""
        return min(self.out_features, self.in_features) // self.structure.width

    @property
    def kernel(self) -> str:
        if self.structure.width == 1:
            return "shift"
        return "scatter_gemm" if self.tall else "gather_gemm"

    @property
    def groups(self) -> int:
        return 1

    @property
    def candidates(self) -> int:
        return self.diagonals // self.structure.run

    @property
    def values_shape(self) -> tuple[int, ...]:
        width, active = self.structure.width, self.active * self.structure.run
        return (active, self.length) if width == 1 else (self.length, active, width, width)

    @property
    def index_shape(self) -> tuple[int, ...]:
        active = self.active * self.structure.run
        return (active,) if self.structure.width == 1 else (self.length, active)

    @property
    def probe_shape(self) -> tuple[int, ...]:
        return (self.candidates,)

    def unit_norms_of_dense(self, weight: Tensor) -> Tensor:
        width = self.structure.width
        listed_first = weight if self.tall else weight.t()
        blocks = listed_first.reshape(self.diagonals, width, self.length, width).float()
        energy = blocks.square().sum(dim=(1, 3))
        entry = torch.arange(self.length, device=weight.device)
        offset = torch.arange(self.diagonals, device=weight.device)[:, None]
        along = energy[(entry + offset) % self.diagonals, entry]
        return along.sum(1).view(1, self.candidates, self.structure.run).sum(2).sqrt()

    def index_from_units(self, units: Tensor) -> Tensor:
        run = torch.arange(self.structure.run, device=units.device)
        offsets = (units.view(-1, 1) * self.structure.run + run).view(-1)
        if self.structure.width > 1:
            entry = torch.arange(self.length, device=units.device)
            offsets = (entry[:, None] + offsets) % self.diagonals
        return offsets.to(self.index_dtype)

    def offsets(self, index: Tensor) -> Tensor:
        """The offsets of the active diagonals, ascending."""
        return index if self.structure.width == 1 else index[0]

    def units_from_index(self, index: Tensor) -> Tensor:
        first = self.offsets(index)[:: self.structure.run].long()
        return (first // self.structure.run).view(1, -1)

    def unit_view(self, tensor: Tensor) -> Tensor:
        by_diagonal = tensor if self.structure.width == 1 else tensor.transpose(0, 1)
        return by_diagonal.unflatten(0, (self.active, self.structure.run)).unsqueeze(0)

    def coordinates(self, index: Tensor) -> tuple[Tensor, Tensor]:
        entry = torch.arange(self.length, device=index.device)
        width = self.structure.width
        if width == 1:
            listed = (entry + index.long()[:, None]) % self.diagonals
            along = entry.expand_as(listed)
        else:
            inner = torch.arange(width, device=index.device)
            listed = (index.long()[:, :, None, None] * width + inner[:, None]).expand(
                self.values_shape
            )
            along = (entry[:, None, None, None] * width + inner).expand(self.values_shape)
        return (listed, along) if self.tall else (along, listed)

    def linear(
        self,
        x: Tensor,
        values: Tensor,
        index: Tensor,
        perm: Tensor,
        bias: Tensor,
        activation: str = "none",
    ) -> Tensor:
        ops = torch.ops.padst
        if self.structure.width == 1:
            return ops.shift(x, values, index, perm, bias, self.out_features, activation)
        if self.tall:
            return ops.scatter_gemm(x, values, index, perm, bias, self.out_features, activation)
        return ops.gather_gemm(x, values, index, perm, bias, self.in_features, activation)

    def probe(self, y: Tensor, x: Tensor, index: Tensor, perm: Tensor, probe: Tensor) -> Tensor:
        width, run = self.structure.width, self.structure.run
        return torch.ops.padst.diag_probe(y, x, perm, probe, width, run)

    def scale_values(self, values: Tensor, index: Tensor, scale: Tensor) -> Tensor:
        """Values with every unit multiplied by its entry of `scale` `[candidates]`."""
        per_diagonal = scale[self.offsets(index).long() // self.structure.run]
        shape = (-1, 1) if self.structure.width == 1 else (1, -1, 1, 1)
        return values * per_diagonal.view(shape)
