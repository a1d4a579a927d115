"""Where the entries of a row block read: the columns that an index stands for."""

from __future__ import annotations

import torch
from torch import Tensor


def entries_per_window(entries: int, window: int, features: int) -> int:
    """n, where ``entries`` are spread evenly over windows of which the last may be short."""
    return entries // -(-features // window)


def first_columns(index: Tensor, group: int, window: int, features: int) -> Tensor:
    """The first column of every entry, [R, E] int64.

    Entry e of a row block lies in window ``e // n`` of ``ceil(features / window)``, with n entries
    in each, and starts ``index * group`` columns into it.
    """
    entries = index.shape[1]
    per_window = entries_per_window(entries, window, features)
    starts = torch.arange(entries, device=index.device) // per_window * window
    return starts + index.long() * group


def all_columns(index: Tensor, group: int, window: int, features: int) -> Tensor:
    """Every column of every entry, [R, E * group] int64, in the order of the values."""
    first = first_columns(index, group, window, features)
    within = torch.arange(group, device=index.device)
    return (first.unsqueeze(-1) + within).flatten(1)
