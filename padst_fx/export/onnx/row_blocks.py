"""Row blocks of a mask: rows that are computed together, and the inputs that any of them reads."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from padst_fx.export.onnx.sources import SparseNode, array_of
from padst_fx.export.onnx.writer import smallest
from padst_fx.kernels.gather_gemm import reference as gather_reference
from padst_fx.kernels.shift import reference as shift_reference

MOST_BATCHES = 4


@dataclass(frozen=True)
class Batch:
    """Row blocks that read the same number of stretches, 0 or more: `rows` `[B]` are their numbers,
    `reads` `[B, K]` the stretches, ascending. A block with fewer is filled up with the number of
    stretches, which is none. Both int64."""

    rows: Tensor
    reads: Tensor

    @property
    def size(self) -> int:
        """B K, the stretches that are read in all."""
        return self.reads.numel()


@dataclass(frozen=True)
class RowBlocks:
    """A mask cut into blocks of `tile` adjacent rows, which read stretches of `stretch` adjacent
    inputs. Blocks that read equally many are in one batch."""

    tile: int
    stretch: int
    batches: tuple[Batch, ...]

    @classmethod
    def of(cls, mask: Tensor, tile: int, stretch: int) -> RowBlocks:
        """The blocks of a mask `[out, in]`, in at most `MOST_BATCHES` batches."""
        reads = mask.view(mask.shape[0] // tile, tile, -1, stretch).any(3).any(1)
        counts = reads.sum(1)
        batches = []
        for low, high in _ranges(counts):
            rows = ((counts >= low) & (counts <= high)).nonzero().view(-1)
            order = reads[rows].byte().argsort(dim=1, descending=True, stable=True)[:, :high]
            is_read = reads[rows].gather(1, order)
            batches.append(Batch(rows, order.masked_fill(~is_read, reads.shape[1])))
        return cls(tile, stretch, tuple(batches))

    @property
    def gathered(self) -> int:
        """Inputs that are gathered for each token."""
        return self.stretch * sum(batch.size for batch in self.batches)

    @property
    def nbytes(self) -> int:
        """What the numbers of stretches take in a file."""
        return sum(smallest(b.reads.numpy()).nbytes for b in self.batches if b.size)

    @property
    def in_order(self) -> bool:
        """Whether the batches' rows come out in the order of the matrix."""
        return len(self.batches) == 1


def _ranges(counts: Tensor) -> list[tuple[int, int]]:
    """Ranges of counts, at most `MOST_BATCHES`: neighbours are merged where it adds least."""
    values, numbers = (each.tolist() for each in counts.unique(return_counts=True))
    ranges = [(value, value, number) for value, number in zip(values, numbers, strict=True)]
    while len(ranges) > MOST_BATCHES:
        added = [(high[1] - low[1]) * low[2] for low, high in pairwise(ranges)]
        place = added.index(min(added))
        low, high = ranges[place : place + 2]
        ranges[place : place + 2] = [(low[0], high[1], low[2] + high[2])]
    return [(low, high) for low, high, _ in ranges]


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
