"""Structured weights in another order of their inputs or outputs, where their layout has it.

What can be moved as a whole, and shuffled within:

| kernel | inputs | outputs |
|---|---|---|
| `shift` | as they are | as they are |
| `gather_gemm` (`Block`, `NM`, wide `Diag` if `O < I`) | groups or windows | row blocks |
| `scatter_gemm` (wide `Diag` if `O >= I`) | row blocks | groups |
"""

from __future__ import annotations

import torch
from torch import Tensor

from padst_fx.freezing.order import Order

# What reading through a permutation costs, as a share of copying the input through a gather.
READING_COST = {"shift": 0.05, "gather_gemm": 0.02, "scatter_gemm": 0.02}


def output_block(kernel: str, values: Tensor) -> int | None:
    """The size of the aligned blocks of outputs that can be moved, None where there are none."""
    if kernel == "shift":
        return None
    return int(values.shape[3] if kernel == "gather_gemm" else values.shape[2])


def can_absorb(kernel: str, values: Tensor, window: int, order: Order) -> bool:
    """Whether the weights can be stored for inputs of this order, without reading through it."""
    if order.is_identity:
        return True
    if kernel == "shift":
        return False
    if kernel == "scatter_gemm":
        return order.keeps_together(int(values.shape[3]))
    group = int(values.shape[2])
    return order.keeps_together(group if group > 1 else window)


def with_inputs(
    kernel: str, values: Tensor, index: Tensor, window: int, order: Order
) -> tuple[Tensor, Tensor]:
    """Values and index that read input `order[j]` where they read input j."""
    source = order.tensor()
    if kernel == "scatter_gemm":
        return _with_row_blocks(values, index, order.inverse)
    group = values.shape[2]
    if group > 1:
        blocks = source.view(-1, group)
        within = blocks % group
        target = index.long()
        moved = torch.empty_like(values)
        place = within[target].unsqueeze(-1).expand_as(values)
        moved.scatter_(2, place, values)
        return _sorted(moved, (blocks[:, 0] // group)[target].to(index.dtype))
    return _with_windows(values, index, window, source)


def _with_windows(
    values: Tensor, index: Tensor, window: int, source: Tensor
) -> tuple[Tensor, Tensor]:
    """Single columns, the same number in every window."""
    windows = -(-len(source) // window)
    number = torch.arange(index.shape[1]) // (index.shape[1] // windows)
    columns = source[number * window + index.long()]
    columns, by = columns.sort(dim=1)
    place = by[:, :, None, None].expand_as(values)
    return values.gather(1, place), (columns % window).to(index.dtype)


def _sorted(values: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """Every row block's entries in ascending order of what they read or write."""
    index, by = index.sort(dim=1)
    return values.gather(1, by[:, :, None, None].expand_as(values)), index


def with_outputs(
    kernel: str, values: Tensor, index: Tensor, order: Order
) -> tuple[Tensor, Tensor]:
    """Values and index whose output j is what output `order[j]` was."""
    if kernel == "gather_gemm":
        return _with_row_blocks(values, index, order)
    group = values.shape[2]
    target = order.inverse.tensor().view(-1, group)
    place = (target % group)[index.long()].unsqueeze(-1).expand_as(values)
    moved = torch.empty_like(values).scatter_(2, place, values)
    return _sorted(moved, (target[:, 0] // group)[index.long()].to(index.dtype))


def _with_row_blocks(values: Tensor, index: Tensor, order: Order) -> tuple[Tensor, Tensor]:
    """Row blocks, and the rows in them, taken in another order."""
    rows = values.shape[3]
    source = order.tensor().view(-1, rows)
    block = source[:, 0] // rows
    within = (source % rows)[:, None, None, :].expand_as(values)
    return values[block].gather(3, within), index[block]
