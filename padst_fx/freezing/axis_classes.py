"""Which axes of a graph's tensors must lie in one order, and which orders they may take."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

from padst_fx.freezing.order import Order


@dataclass
class Terms:
    """What is asked of the order of a class of axes.

    `fixed`: why it must be the identity. `together` and `in_place`: sizes of aligned blocks that
    must stay whole, and must stay where they are, each with the reason. `parts`: the classes it
    is made of, side by side; such a class has no order of its own.
    """

    size: int
    fixed: str | None = None
    together: dict[int, str] = field(default_factory=dict)
    in_place: dict[int, str] = field(default_factory=dict)
    parts: tuple[int, ...] = ()


class AxisClasses:
    """Union-find over axes. An axis is an integer that `new` has given out."""

    def __init__(self) -> None:
        self._parent: list[int] = []
        self._terms: list[Terms] = []

    def new(self, size: int, fixed: str | None = None) -> int:
        """A new axis, in a class of its own; with a reason, one that must not be permuted."""
        self._parent.append(len(self._parent))
        self._terms.append(Terms(size, fixed))
        return len(self._parent) - 1

    def find(self, axis: int) -> int:
        """The axis that stands for the class."""
        while self._parent[axis] != axis:
            self._parent[axis] = self._parent[self._parent[axis]]
            axis = self._parent[axis]
        return axis

    def terms(self, axis: int) -> Terms:
        """What is asked of the class of an axis."""
        return self._terms[self.find(axis)]

    def fix(self, axis: int, reason: str) -> None:
        """Bar the class from any order but the identity. The first reason is kept."""
        terms = self.terms(axis)
        for part in terms.parts:
            self.fix(part, reason)
        terms.fixed = terms.fixed or reason

    def keep_together(self, axis: int, block: int, reason: str) -> None:
        """Allow only orders that move aligned blocks as wholes."""
        if block > 1:
            self._ask(axis, "together", block, reason)

    def keep_in_place(self, axis: int, block: int, reason: str) -> None:
        """Allow only orders within aligned blocks."""
        self._ask(axis, "in_place", block, reason)

    def _ask(self, axis: int, kind: str, block: int, reason: str) -> None:
        terms = self.terms(axis)
        sizes = [self.terms(part).size for part in terms.parts]
        if any(start % block for start in accumulate(sizes, initial=0)):
            self.fix(axis, reason)
        for part in terms.parts:
            self._ask(part, kind, block, reason)
        getattr(terms, kind).setdefault(block, reason)

    def divide(self, axis: int, sizes: Sequence[int]) -> tuple[int, ...]:
        """The class as so many classes side by side: an axis of each.

        A class already divided otherwise is fixed, and what is given back is fixed, too.
        """
        terms = self.terms(axis)
        if not terms.parts:
            self.assemble(axis, [self.new(size) for size in sizes])
        if [self.terms(part).size for part in terms.parts] == list(sizes):
            return terms.parts
        reason = "it is divided in two different ways"
        self.fix(axis, reason)
        return tuple(self.new(size, reason) for size in sizes)

    def assemble(self, axis: int, parts: Iterable[int]) -> None:
        """Make a class the classes of `parts` side by side, which take over what it is asked."""
        terms = self.terms(axis)
        terms.parts = tuple(parts)
        if terms.fixed:
            self.fix(axis, terms.fixed)
        for kind in ("together", "in_place"):
            for block, reason in list(getattr(terms, kind).items()):
                self._ask(axis, kind, block, reason)

    def union(self, one: int, other: int) -> None:
        """Make two classes one."""
        one, other = self.find(one), self.find(other)
        if one == other:
            return
        kept, gone = self._terms[one], self._terms[other]
        assert kept.size == gone.size, (kept, gone)
        self._parent[other] = one
        if not kept.parts and gone.parts:
            self.assemble(one, gone.parts)
        elif gone.parts:
            self._union_parts(one, kept, gone)
        if gone.fixed:
            self.fix(one, gone.fixed)
        for kind in ("together", "in_place"):
            for block, reason in getattr(gone, kind).items():
                self._ask(one, kind, block, reason)

    def _union_parts(self, axis: int, kept: Terms, gone: Terms) -> None:
        sizes = [[self.terms(part).size for part in terms.parts] for terms in (kept, gone)]
        if sizes[0] == sizes[1]:
            for mine, theirs in zip(kept.parts, gone.parts, strict=True):
                self.union(mine, theirs)
            return
        reason = "it is divided in two different ways"
        self.fix(axis, reason)
        for part in gone.parts:
            self.fix(part, reason)

    def objection(self, axis: int, order: Order) -> str | None:
        """Why the class cannot take an order, None if it can."""
        terms = self.terms(axis)
        if order.is_identity:
            return None
        if terms.fixed:
            return terms.fixed
        for block, reason in terms.together.items():
            if not order.keeps_together(block):
                return reason
        for block, reason in terms.in_place.items():
            if not order.keeps_in_place(block):
                return reason
        return None
