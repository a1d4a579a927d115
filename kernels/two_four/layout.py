"""From the values and slots of ``NM(2, 4)`` to the dense matrix that 2:4 libraries compress."""

from __future__ import annotations

from torch import Tensor

PER_WINDOW, WINDOW, MULTIPLE = 2, 4, 16


def fits(values: Tensor, in_features: int) -> bool:
    """Whether the values are those of two in every four inputs, in a shape libraries take."""
    row_blocks, entries, group, tile = values.shape
    two_of_four = group == 1 and entries * WINDOW == in_features * PER_WINDOW
    return two_of_four and in_features % MULTIPLE == 0 and row_blocks * tile % MULTIPLE == 0


def dense_weight(values: Tensor, index: Tensor) -> Tensor:
    """Values [R, E, 1, V] at the slots ``index`` [R, E]: the matrix [R*V, 2*E], zero elsewhere."""
    row_blocks, entries, _, tile = values.shape
    rows, features = row_blocks * tile, entries // PER_WINDOW * WINDOW
    slot = index.long().view(row_blocks, -1, PER_WINDOW)
    first = slot.new_tensor(range(0, features, WINDOW)).view(1, -1, 1)
    column = (first + slot).view(row_blocks, entries, 1).expand(-1, -1, tile)
    by_row = values.squeeze(2).transpose(1, 2).reshape(rows, entries)
    dense = values.new_zeros(rows, features)
    return dense.scatter_(1, column.transpose(1, 2).reshape(rows, entries), by_row)
