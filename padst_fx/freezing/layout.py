"""Which class of axes each dimension of a tensor belongs to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch


@dataclass(frozen=True)
class Group:
    """One axis of `AxisClasses` and the dimensions that it lies along.

    Several dimensions are the axis taken apart by a view: its entries are theirs in row-major
    order. They need not be neighbours.
    """

    dims: tuple[int, ...]
    axis: int

    @property
    def is_whole(self) -> bool:
        """Whether the axis lies along one dimension."""
        return len(self.dims) == 1

    def moved(self, places: dict[int, int]) -> Group:
        """The same with dimension d at `places[d]`."""
        return replace(self, dims=tuple(places[dim] for dim in self.dims))


@dataclass(frozen=True)
class Layout:
    """The groups of a tensor. Dimensions of one entry, and of dynamic size, are in none."""

    groups: tuple[Group, ...] = ()

    def at(self, dim: int) -> Group | None:
        """The group that a dimension is in."""
        return next((group for group in self.groups if dim in group.dims), None)

    def without(self, *gone: Group) -> Layout:
        """The other groups."""
        return Layout(tuple(group for group in self.groups if group not in gone))


def sizes_of(node: torch.fx.Node) -> list[Any]:
    """The sizes of a node's tensor: integers, and symbolic ones for dynamic dimensions."""
    return list(node.meta["val"].shape)


def is_static(size: Any) -> bool:
    """Whether a size is a plain integer."""
    return isinstance(size, int)


def matched_dims(before: Sequence[Any], after: Sequence[Any]) -> list[tuple[list[int], list[int]]]:
    """How a view rearranges dimensions: the smallest runs of both shapes with equal products.

    Dimensions of one entry are left out. From the first dynamic size that has no equal partner
    on, counted from the end, everything is one run.
    """
    left = [dim for dim, size in enumerate(before) if not (is_static(size) and size == 1)]
    right = [dim for dim, size in enumerate(after) if not (is_static(size) and size == 1)]
    runs: list[tuple[list[int], list[int]]] = []
    while left and right:
        run = _last_run(before, after, left, right)
        if run is None:
            break
        runs.append(run)
        left, right = left[: -len(run[0])], right[: -len(run[1])]
    if left or right:
        runs.append((left, right))
    return runs[::-1]


def _last_run(
    before: Sequence[Any], after: Sequence[Any], left: list[int], right: list[int]
) -> tuple[list[int], list[int]] | None:
    if str(before[left[-1]]) == str(after[right[-1]]):
        return left[-1:], right[-1:]
    i, j = 1, 1
    while i <= len(left) and j <= len(right):
        taken, given = [before[dim] for dim in left[-i:]], [after[dim] for dim in right[-j:]]
        if not all(is_static(size) for size in (*taken, *given)):
            return None
        a, b = _product(taken), _product(given)
        if a == b:
            return left[-i:], right[-j:]
        i, j = (i + 1, j) if a < b else (i, j + 1)
    return None


def _product(sizes: Sequence[int]) -> int:
    result = 1
    for size in sizes:
        result *= size
    return result
