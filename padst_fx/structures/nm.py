"""N:M sparsity: exactly n of every m consecutive inputs."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

import torch
from torch import Tensor

from padst_fx.structures.base import (
    Pattern,
    Structure,
    StructureError,
    check_divides,
    check_positive,
    check_sparsity,
)

LARGEST_M = 32


@dataclass(frozen=True)
class NM(Structure):
    """In each row exactly `n` of every `m` consecutive inputs; `tile` rows share the choice.

    Without `n` and `m` they are taken from the sparsity as the nearest fraction with
    `m <= 32`: 0.9 is 1:10. The last window of a row may be shorter than `m`; it keeps `n` too.
    """

    n: int | None = None
    m: int | None = None
    tile: int = 1
    name: ClassVar[str] = "nm"

    def __post_init__(self) -> None:
        check_positive("NM", tile=self.tile)
        if self.n is None and self.m is None:
            return
        if self.n is None or self.m is None:
            raise StructureError(f"NM: give both n and m or neither, got n={self.n}, m={self.m}")
        check_positive("NM", n=self.n, m=self.m)
        if self.n > self.m:
            raise StructureError(f"NM: n={self.n} is larger than m={self.m}")

    def ratio(self, sparsity: float | None) -> tuple[int, int]:
        """n and m, checked against the sparsity asked for."""
        if self.n is None or self.m is None:
            density = Fraction(1 - check_sparsity(sparsity)).limit_denominator(LARGEST_M)
            density = max(density, Fraction(1, LARGEST_M))
            return density.numerator, density.denominator
        if sparsity is not None and abs(check_sparsity(sparsity) - (1 - self.n / self.m)) > 1e-6:
            raise StructureError(
                f"NM({self.n}, {self.m}) is {1 - self.n / self.m:.4g} sparse, "
                f"but sparsity={sparsity} was asked for"
            )
        return self.n, self.m

    def bind(self, out_features: int, in_features: int, sparsity: float | None) -> NMPattern:
        n, m = self.ratio(sparsity)
        m = min(m, in_features)
        last = in_features % m or m
        if last < n:
            raise StructureError(
                f"NM({n}, {m}) leaves {last} of in={in_features} in the last window, fewer than {n}"
            )
        return NM(n, m, self.tile).pattern(out_features, in_features, n)

    def pattern(self, out_features: int, in_features: int, active: int) -> NMPattern:
        if self.m is None:
            raise StructureError("NM() has no m yet; bind it to a shape with a sparsity")
        check_divides(f"NM(tile={self.tile})", self.tile, out=out_features)
        return NMPattern(NM(active, self.m, self.tile), out_features, in_features, active)


@dataclass(frozen=True)
class NMPattern(Pattern):
    """`NM` on a shape: values `[O/tile, windows * n, 1, tile]`, index the slots in the windows.

    Groups are (row tile, window) pairs, windows innermost; candidates are the m slots. A probe's
    gradient holds the best candidates' scores and their slots, raised by m.
    """

    structure: NM

    @property
    def m(self) -> int:
        """Inputs in a window."""
        assert self.structure.m is not None
        return self.structure.m

    @property
    def tiles(self) -> int:
        return self.out_features // self.structure.tile

    @property
    def windows(self) -> int:
        return -(-self.in_features // self.m)

    @property
    def kernel(self) -> str:
        return "gather_gemm"

    @property
    def groups(self) -> int:
        return self.tiles * self.windows

    @property
    def candidates(self) -> int:
        return self.m

    @property
    def capacity(self) -> int:
        return self.in_features % self.m or self.m

    @property
    def values_shape(self) -> tuple[int, ...]:
        return (self.tiles, self.windows * self.active, 1, self.structure.tile)

    @property
    def index_shape(self) -> tuple[int, ...]:
        return (self.tiles, self.windows * self.active)

    @property
    def index_dtype(self) -> torch.dtype:
        return torch.uint8 if self.m <= 256 else torch.int32

    @property
    def probe_shape(self) -> tuple[int, ...]:
        return (2, self.tiles, self.windows, min(self.active, self.m - self.active))

    @property
    def adds_up(self) -> bool:
        return False

    def available(self) -> Tensor:
        column = torch.arange(self.windows * self.m, device="cpu").view(1, self.windows, self.m)
        exists = (column < self.in_features).expand(self.tiles, -1, -1)
        return exists.reshape(self.groups, self.m)

    def unit_norms_of_dense(self, weight: Tensor) -> Tensor:
        padding = self.windows * self.m - self.in_features
        padded = torch.nn.functional.pad(weight.float(), (0, padding))
        energy = padded.view(self.tiles, self.structure.tile, self.groups // self.tiles, self.m)
        return energy.square().sum(1).sqrt().reshape(self.groups, self.m)

    def index_from_units(self, units: Tensor) -> Tensor:
        return units.view(self.index_shape).to(self.index_dtype)

    def units_from_index(self, index: Tensor) -> Tensor:
        return index.long().view(self.groups, self.active)

    def unit_view(self, tensor: Tensor) -> Tensor:
        return tensor.view(self.groups, self.active, self.structure.tile)

    def coordinates(self, index: Tensor) -> tuple[Tensor, Tensor]:
        inner = torch.arange(self.structure.tile, device=index.device)
        tile = torch.arange(self.tiles, device=index.device)
        window = torch.arange(self.windows * self.active, device=index.device) // self.active
        row = tile[:, None, None, None] * self.structure.tile + inner
        column = (index.long() + window * self.m)[:, :, None, None]
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
        return torch.ops.padst.gather_gemm(x, values, index, perm, bias, self.m, activation)

    def probe(self, y: Tensor, x: Tensor, index: Tensor, perm: Tensor, probe: Tensor) -> Tensor:
        return torch.ops.padst.nm_probe(y, x, index, perm, probe, self.active, self.m)

    def growth_candidates(self, scores: Tensor) -> tuple[Tensor, Tensor]:
        score, slot = scores.reshape(2, self.groups, -1)
        return score, slot.long() - self.m

    def is_one_use(self, scores: Tensor) -> bool:
        return bool((scores[1] < 2 * self.m).all())

    def merge_growth(self, collected: Tensor, arrived: Tensor) -> Tensor:
        """The best candidates of both passes; a slot found by both adds its scores."""
        score = torch.cat((collected[0], arrived[0]), dim=-1)
        slot = torch.cat((collected[1], arrived[1]), dim=-1)
        same = collected[1].unsqueeze(-1) == arrived[1].unsqueeze(-2)
        same &= (collected[0] >= 0).unsqueeze(-1) & (arrived[0] >= 0).unsqueeze(-2)
        kept = collected.shape[-1]
        score[..., :kept] += (same * arrived[0].unsqueeze(-2)).sum(-1)
        score[..., kept:] = score[..., kept:].masked_fill(same.any(-2), -1.0)
        order = score.argsort(dim=-1, descending=True, stable=True)[..., :kept]
        return torch.stack((score.gather(-1, order), slot.gather(-1, order)))
