"""The considered columns of a layer's weights, without the dense matrix around them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from padst_fx.layers.linear import SparseLinear


@dataclass(frozen=True)
class Columns:
    """Where the active weights of `J` columns lie, each 1-d int64: `entries` in a flattened tensor
    of the values' shape, `row` and `place` in a matrix `[O, J]`."""

    outputs: int
    count: int
    entries: Tensor
    row: Tensor
    place: Tensor

    @classmethod
    def of(cls, layer: SparseLinear, columns: Tensor) -> Columns:
        """`columns` `[J]` in the structure's coordinates."""
        places = torch.full((layer.in_features,), -1, device=columns.device)
        places[columns] = torch.arange(len(columns), device=columns.device)
        row, column = (along.flatten() for along in layer.pattern.coordinates(layer.index))
        place = places.index_select(0, column)
        among = place >= 0
        if layer.index.dtype == torch.bool:
            among &= layer.index.flatten()
        entries = among.nonzero().squeeze(1)
        return cls(
            layer.out_features,
            len(columns),
            entries,
            row.index_select(0, entries),
            place.index_select(0, entries),
        )

    def read(self, tensor: Tensor) -> Tensor:
        """The active weights of a tensor of the values' shape, 1-d."""
        return tensor.detach().flatten().index_select(0, self.entries)

    def pick(self, matrix: Tensor, place: Tensor) -> Tensor:
        """What a matrix `[O, J]` has in the rows of the active weights, at other places, 1-d."""
        return matrix.flatten().index_select(0, self.row * self.count + place)

    def dense(self, tensor: Tensor) -> Tensor:
        """The columns of a tensor of the values' shape: `[O, J]`, zero outside the mask."""
        return self._spread(self.read(tensor), 0)

    def mask(self) -> Tensor:
        """Which entries are active: bool `[O, J]`."""
        return self._spread(torch.ones_like(self.row, dtype=torch.bool), False)

    def exchange(self, tensors: Iterable[Tensor], order: Tensor) -> None:
        """Let column `k` take column `order[k]`, in place in tensors of the values' shape.

        So a weight between an output and a feature stays what it was wherever the mask has room
        for it at the feature's new position, and is zero where it is new.
        """
        numbers = self._spread(torch.arange(len(self.row), device=self.row.device), -1)
        source = self.pick(numbers, order.index_select(0, self.place))
        is_kept = source >= 0
        source.clamp_(min=0)
        for tensor in tensors:
            taken = self.read(tensor).index_select(0, source)
            tensor.detach().put_(self.entries, torch.where(is_kept, taken, 0))

    def _spread(self, values: Tensor, absent: float) -> Tensor:
        """A matrix `[O, J]` of 1-d values, `absent` outside the mask."""
        matrix = values.new_full((self.outputs * self.count,), absent)
        matrix.index_copy_(0, self.row * self.count + self.place, values)
        return matrix.view(self.outputs, self.count)
