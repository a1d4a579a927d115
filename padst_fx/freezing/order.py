"""Orders: in what order the entries of a tensor's axis lie."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Order:
    """A permutation p of an axis: the tensor x' at hand holds `x'[j] = x[p[j]]`.

    Equal orders have equal hashes; the positions are int64.
    """

    content: bytes

    @classmethod
    def of(cls, positions: np.ndarray | Tensor | Iterable[int]) -> Order:
        """The order of these positions, which must be a permutation."""
        if isinstance(positions, Tensor):
            positions = positions.detach().cpu().numpy()
        array = np.ascontiguousarray(positions, dtype=np.int64)
        if not np.array_equal(np.sort(array), np.arange(array.size)):
            raise ValueError(f"not a permutation of {array.size} positions")
        return cls(array.tobytes())

    @classmethod
    def identity(cls, size: int) -> Order:
        """The order of an axis that nobody has permuted."""
        return cls(np.arange(size, dtype=np.int64).tobytes())

    @classmethod
    def side_by_side(cls, orders: Iterable[Order]) -> Order:
        """The order of axes that lie one behind the other in a longer one."""
        start, parts = 0, []
        for order in orders:
            parts.append(order.positions + start)
            start += order.size
        return cls(np.concatenate(parts).tobytes())

    @property
    def positions(self) -> np.ndarray:
        """p as int64, read only."""
        return np.frombuffer(self.content, dtype=np.int64)

    @property
    def size(self) -> int:
        """The length of the axis."""
        return len(self.content) // 8

    @cached_property
    def is_identity(self) -> bool:
        """Whether everything lies where it always did."""
        return bool((self.positions == np.arange(self.size)).all())

    def then(self, other: Order) -> Order:
        """`p[q[j]]`: reading an axis of this order through the index q."""
        return Order(self.positions[other.positions].tobytes())

    @cached_property
    def inverse(self) -> Order:
        """The order that undoes this one."""
        return Order(np.argsort(self.positions, kind="stable").tobytes())

    def keeps_together(self, block: int) -> bool:
        """Whether every aligned block comes from one aligned block, in whatever order; the last
        may be shorter."""
        source = self.positions // block
        starts = np.arange(0, self.size, block)
        low = np.minimum.reduceat(source, starts)
        high = np.maximum.reduceat(source, starts)
        whole = self.size % block == 0 or low[-1] == len(starts) - 1
        return bool((low == high).all() and whole)

    def keeps_in_place(self, block: int) -> bool:
        """Whether every aligned block holds its own entries, in whatever order."""
        return bool((self.positions // block == np.arange(self.size) // block).all())

    def tensor(self, dtype: torch.dtype = torch.int64) -> Tensor:
        """p as a tensor of its own on the CPU."""
        return torch.from_numpy(self.positions.copy()).to(dtype)
