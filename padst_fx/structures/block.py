"""Aligned dense blocks, the same number in every block row."""

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
class Block(Structure):
    """Aligned dense `size x size` blocks; `max(1, round((1 - sparsity) I / size))` a block row."""

    size: int = 16
    name: ClassVar[str] = "block"

    def __post_init__(self) -> None:
        check_positive("Block", size=self.size)

    @property
    def usual_permutation(self) -> str:
        return "learned" if self.size > 1 else "identity"

    def bind(self, out_features: int, in_features: int, sparsity: float | None) -> BlockPattern:
        density = 1 - check_sparsity(sparsity)
        candidates = in_features // self.size
        return self.pattern(out_features, in_features, max(1, round(density * candidates)))

    def pattern(self, out_features: int, in_features: int, active: int) -> BlockPattern:
        check_divides(
            f"Block(size={self.size})", self.size, out=out_features, **{"in": in_features}
        )
        return BlockPattern(self, out_features, in_features, active)


@dataclass(frozen=True)
class BlockPattern(Pattern):
    """`Block` on a shape: values `[O/b, active, b (in), b (out)]`, index the block columns."""

    structure: Block

    @property
    def kernel(self) -> str:
        return "gather_gemm"

    @property
    def groups(self) -> int:
        return self.out_features // self.structure.size

    @property
    def candidates(self) -> int:
        return self.in_features // self.structure.size

    @property
    def values_shape(self) -> tuple[int, ...]:
        return (self.groups, self.active, self.structure.size, self.structure.size)

    @property
    def index_shape(self) -> tuple[int, ...]:
        return (self.groups, self.active)

    @property
    def probe_shape(self) -> tuple[int, ...]:
        return (self.groups, self.candidates)

    def unit_norms_of_dense(self, weight: Tensor) -> Tensor:
        size = self.structure.size
        blocks = weight.reshape(self.groups, size, self.candidates, size).float()
        return blocks.square().sum(dim=(1, 3)).sqrt()

    def index_from_units(self, units: Tensor) -> Tensor:
        return units.to(self.index_dtype)

    def units_from_index(self, index: Tensor) -> Tensor:
        return index.long()

    def unit_view(self, tensor: Tensor) -> Tensor:
        return tensor

    def coordinates(self, index: Tensor) -> tuple[Tensor, Tensor]:
        inner = torch.arange(self.structure.size, device=index.device)
        group = torch.arange(self.groups, device=index.device)
        row = group[:, None, None, None] * self.structure.size + inner
        column = index.long()[:, :, None, None] * self.structure.size + inner[:, None]
        return row.expand(self.values_shape), column.expand(self.values_shape)

    def linear(
        self,
        x: Tensor,
        values: Tensor,
        index: Tensor,
        perm: Tensor,
        bias: Tensor,
        activation: str = "none",
    ) -> Tensor:
        return torch.ops.padst.gather_gemm(
            x, values, index, perm, bias, self.in_features, activation
        )

    def probe(self, y: Tensor, x: Tensor, index: Tensor, perm: Tensor, probe: Tensor) -> Tensor:
        return torch.ops.padst.block_probe(y, x, perm, probe, self.structure.size)
