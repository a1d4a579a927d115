"""Row blocks of a mask: rows that are computed together, and the columns that any of them reads."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from padst_fx.export.onnx.sources import SparseNode, array_of
from padst_fx.kernels.gather_gemm import reference as gather_reference
from padst_fx.kernels.shift import reference as shift_reference


@dataclass(frozen=True)
class RowBlocks:
    """`columns` int64 `[R, C]`, ascending in each row; `tile` rows share them. Blocks with fewer
    columns than others are filled up with `in_features`, which is no column."""

    tile: int
    columns: Tensor
    in_features: int

    @classmethod
    def of(cls, mask: Tensor, tile: int) -> RowBlocks:
        """The blocks of `tile` adjacent rows of a mask `[out, in]`."""
        read = mask.view(-1, tile, mask.shape[1]).any(1)
        most = int(read.sum(1).max())
        order = read.byte().argsort(dim=1, descending=True, stable=True)[:, :most]
        is_read = read.gather(1, order)
        return cls(tile, order.masked_fill(~is_read, mask.shape[1]), mask.shape[1])

    @property
    def width(self) -> int:
        """C, the number of columns of a block."""
        return self.columns.shape[1]

    @property
    def is_ragged(self) -> bool:
        """Whether some block has fewer columns than others."""
        return bool((self.columns == self.in_features).any())


def mask_of(layer: SparseNode) -> Tensor:
    """The layer's mask, bool `[out, in]`; its permutation is left aside."""
    index = torch.from_numpy(array_of(layer.index))
    ones = torch.ones(array_of(layer.values).shape, dtype=torch.bool)
    if layer.kind == "Shift":
        return shift_reference.dense(ones, index, layer.out_features, layer.in_features)
    if layer.kind == "ScatterGemm":
        size = layer.out_features
        return gather_reference.dense(ones, index, size, size).t().contiguous()
    return gather_reference.dense(ones, index, layer.sizes["window"], layer.in_features)
