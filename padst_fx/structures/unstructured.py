"""A masked dense weight: the accuracy baseline of RigL and SET, no smaller and no faster."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from padst_fx.kernels import activation as activations
from padst_fx.structures.base import Pattern, Structure, check_sparsity


@dataclass(frozen=True)
class Unstructured(Structure):
    """`max(1, round((1 - sparsity) O I))` weights anywhere: a baseline that computes dense."""

    name: ClassVar[str] = "unstructured"

    def bind(
        self, out_features: int, in_features: int, sparsity: float | None
    ) -> UnstructuredPattern:
        density = 1 - check_sparsity(sparsity)
        weights = out_features * in_features
        return self.pattern(out_features, in_features, max(1, round(density * weights)))

    def pattern(self, out_features: int, in_features: int, active: int) -> UnstructuredPattern:
        return UnstructuredPattern(self, out_features, in_features, active)


@dataclass(frozen=True)
class UnstructuredPattern(Pattern):
    """`Unstructured` on a shape: values `[O, I]`, zero outside the mask; index the bool mask."""

    structure: Unstructured

    @property
    def kernel(self) -> str:
        return "masked dense"

    @property
    def groups(self) -> int:
        return 1

    @property
    def candidates(self) -> int:
        return self.out_features * self.in_features

    @property
    def values_shape(self) -> tuple[int, ...]:
        return (self.out_features, self.in_features)

    @property
    def index_shape(self) -> tuple[int, ...]:
        return self.values_shape

    @property
    def index_dtype(self) -> torch.dtype:
        return torch.bool

    @property
    def probe_shape(self) -> tuple[int, ...]:
        return self.values_shape

    @property
    def nonzeros(self) -> int:
        return self.active

    def unit_norms_of_dense(self, weight: Tensor) -> Tensor:
        return weight.float().abs().reshape(1, -1)

    def index_from_units(self, units: Tensor) -> Tensor:
        mask = torch.zeros(self.candidates, dtype=torch.bool, device=units.device)
        return mask.index_fill_(0, units.view(-1), True).view(self.index_shape)

    def units_from_index(self, index: Tensor) -> Tensor:
        return index.view(-1).nonzero().view(1, self.active)

    def unit_view(self, tensor: Tensor) -> Tensor:
        raise NotImplementedError("the units of a masked dense weight are not a view of it")

    def unit_norms(self, tensor: Tensor, index: Tensor) -> Tensor:
        return tensor.detach().float().abs()[index].view(1, self.active)

    def coordinates(self, index: Tensor) -> tuple[Tensor, Tensor]:
        row = torch.arange(self.out_features, device=index.device)[:, None]
        column = torch.arange(self.in_features, device=index.device)
        return row.expand(self.values_shape), column.expand(self.values_shape)

    def values_from_dense(self, weight: Tensor, index: Tensor) -> Tensor:
        return weight * index

    def dense(self, values: Tensor, index: Tensor) -> Tensor:
        return values * index

    def linear(
        self,
        x: Tensor,
        values: Tensor,
        index: Tensor,
        perm: Tensor,
        bias: Tensor,
        activation: str = "none",
    ) -> Tensor:
        gathered = x.index_select(-1, perm) if perm.numel() else x
        y = F.linear(gathered, values * index, bias if bias.numel() else None)
        return activations.apply(activation, y)

    def probe(self, y: Tensor, x: Tensor, index: Tensor, perm: Tensor, probe: Tensor) -> Tensor:
        return torch.ops.padst.weight_probe(y, x, perm, probe)

    def rearrange(self, tensors: Sequence[Tensor], old: Tensor, new: Tensor) -> None:
        before, after = self.index_from_units(old), self.index_from_units(new)
        kept = before & after
        for tensor in tensors:
            tensor.detach().mul_(kept)
