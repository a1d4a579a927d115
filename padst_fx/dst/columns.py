"""The considered columns of a layer's weights, without the dense matrix around them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from padst_fx.layers.linear import SparseLinear


@dataclass(frozen=True)
class Columns:
    """Where the active weights of `J` columns lie: `entries` index a tensor of the values' shape,
    `row` and `place` a matrix `[O, J]`."""

    outputs: int
    count: int
    entries: tuple[Tensor, ...]
    row: Tensor
    place: Tensor

    @classmethod
    def of(cls, layer: SparseLinear, columns: Tensor) -> Columns:
        """`columns` `[J]` in the structure's coordinates."""
        places = torch.full((layer.in_features,), -1, device=columns.device)
        places[columns] = torch.arange(len(columns), device=columns.device)
        row, column = layer.pattern.coordinates(layer.index)
        place = places[column]
        among = place >= 0
        if layer.index.dtype == torch.bool:
            among &= layer.index
        entries = among.nonzero(as_tuple=True)
        return cls(layer.out_features, len(columns), entries, row[entries], place[entries])

    def dense(self, tensor: Tensor) -> Tensor:
        """The columns of a tensor of the values' shape: `[O, J]`, zero outside the mask."""
        matrix = tensor.new_zeros(self.outputs, self.count)
        matrix[self.row, self.place] = tensor.detach()[self.entries]
        return matrix

    def mask(self) -> Tensor:
        """Which entries are active: bool `[O, J]`."""
        matrix = torch.zeros(self.outputs, self.count, dtype=torch.bool, device=self.row.device)
        matrix[self.row, self.place] = True
        return matrix

    def exchange(self, tensor: Tensor, order: Tensor) -> None:
        """Let column `k` take column `order[k]`, in place.

        So a weight between an output and a feature stays what it was wherever the mask has room
        for it at the feature's new position, and is zero where it is new.
        """
        exchanged = self.dense(tensor)[:, order]
        tensor.detach()[self.entries] = exchanged[self.row, self.place]
