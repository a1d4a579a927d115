"""What became of every permutation, for people."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from torch.fx import Node

from padst_fx.freezing.dense import DenseChoice, layer_name
from padst_fx.freezing.layout import Layout
from padst_fx.freezing.placement import Placement
from padst_fx.freezing.rules_sparse import kernel_of
from padst_fx.freezing.trace import Reading, Seam
from padst_fx.passes.projection_op import projection_ops
from padst_fx.tables import render

if TYPE_CHECKING:
    from padst_fx.freezing.drawing import Picture

FATES = {
    "folded": "what comes before is stored in its order",
    "absorbed": "the layer's own index is stored in its order",
    "cancelled": "it meets others that undo it",
    "read through": "the kernel reads its input through it",
    "gather": "a copy of the tensor in another order",
}


@dataclass(frozen=True)
class Account:
    """One permutation: of the sparse layer `name`, or of a gather in the graph.

    `fate` is one of `FATES`; `detail` says what it was folded into, or what barred that.
    """

    name: str
    size: int
    kernel: str
    fate: str
    detail: str


@dataclass(frozen=True)
class Report:
    """An account of every permutation of a graph; printing it shows a table.

    `dense` are the sparse layers that are dense in the frozen model because that is faster.
    """

    accounts: tuple[Account, ...]
    dense: tuple[DenseChoice, ...]
    picture: Picture

    @classmethod
    def of(cls, placement: Placement, dense: tuple[DenseChoice, ...]) -> Report:
        """The report on a placement, before it is carried out."""
        from padst_fx.freezing.drawing import Picture

        writer = _Accountant(placement)
        accounts = tuple(writer.accounts())
        return cls(accounts, dense, Picture.of(placement, writer.fates))

    @property
    def counts(self) -> Counter[str]:
        """How many permutations had each fate."""
        return Counter(account.fate for account in self.accounts)

    @property
    def gathers(self) -> int:
        """Standalone gathers that remain."""
        return self.counts["gather"]

    def draw(self, path: str | Path) -> Path:
        """Draw the graph with every permutation's fate into a file.

        Raises `ModuleNotFoundError` without the extra `pictures`."""
        return self.picture.draw(path)

    def __str__(self) -> str:
        counts = ", ".join(f"{self.counts[fate]} {fate}" for fate in FATES if self.counts[fate])
        title = f"{len(self.accounts)} permutations: {counts or 'none to do anything about'}"
        columns = ("permutation of", "size", "kernel", "fate", "into or because")
        rows = [(a.name, str(a.size), a.kernel, a.fate, a.detail) for a in self.accounts]
        return "\n".join((render(title, columns, rows), *map(str, self.dense)))


class _Accountant:
    """Writes the accounts of a placement."""

    def __init__(self, placement: Placement) -> None:
        self.placement = placement
        self.trace = placement.trace
        self.classes = placement.trace.classes
        self.neighbours = placement.neighbours()
        self.fates: dict[Node, str] = {}
        self.holders: dict[int, list[str]] = {}
        for node, layout in self.trace.layouts.items():
            if isinstance(layout, Layout):
                self._note_holders(node, layout)

    def _note_holders(self, node: Node, layout: Layout) -> None:
        """Which constants and which layers' rows are stored in the order of a class."""
        for group in layout.groups:
            if node.op == "get_attr" and node.users:
                self._hold(group.axis, str(node.target))
            elif node.target in projection_ops() and group.dims[0] == node.meta["val"].dim() - 1:
                self._hold(group.axis, f"rows of {layer_name(node)}")

    def _hold(self, axis: int, name: str) -> None:
        for part in self.classes.terms(axis).parts:
            self._hold(part, name)
        self.holders.setdefault(self.classes.find(axis), []).append(name)

    def accounts(self) -> list[Account]:
        """One for every permutation that there was or is."""
        found = [self._of_layer(reading) for reading in self.trace.readings]
        found += [self._of_seam(seam) for seam in self.trace.seams]
        return [account for account in found if account is not None]

    def _of_layer(self, reading: Reading) -> Account | None:
        remaining = self.placement.remaining(reading)
        if reading.perm.is_identity and remaining.is_identity:
            return None
        if remaining.is_identity:
            fate, detail = self._removed(reading.axis)
        elif self.placement.absorbs(reading, remaining):
            fate, detail = "absorbed", "its own index and values"
        else:
            fate, detail = "read through", self._objection(reading)
        self.fates[reading.node] = fate
        name, kernel = layer_name(reading.node), kernel_of(reading.node)
        return Account(name, remaining.size, kernel, fate, detail)

    def _of_seam(self, seam: Seam) -> Account | None:
        gather = self.placement.gather(seam)
        if gather.is_identity and (seam.index is None or seam.index.is_identity):
            return None
        if gather.is_identity:
            fate, detail = self._removed(seam.source)
        else:
            fate = "gather"
            detail = "; ".join(
                dict.fromkeys(
                    reason
                    for end in (seam.source, seam.target)
                    if (reason := self.classes.terms(end).fixed)
                )
            )
        self.fates[seam.consumer] = fate
        return Account(seam.consumer.name, gather.size, "", fate, detail)

    def _removed(self, axis: int) -> tuple[str, str]:
        """What is stored in another order around an axis that needs no gather any more."""
        neighbours = self.neighbours
        pending, seen = [self.classes.find(axis)], set()
        names: dict[str, None] = {}
        while pending:
            root = pending.pop()
            if root in seen:
                continue
            seen.add(root)
            if not self.placement.order(root).is_identity:
                names.update(dict.fromkeys(self.holders.get(root, ())))
            for seam in neighbours[root][0]:
                if self.placement.gather(seam).is_identity:
                    pending += [self.classes.find(seam.source), self.classes.find(seam.target)]
        if names:
            return "folded", _listed(list(names))
        return "cancelled", "permutations around it"

    def _objection(self, reading: Reading) -> str:
        """The nearest thing that bars the layer's input from lying in the order it reads in."""
        neighbours = self.neighbours
        pending = deque([(self.classes.find(reading.axis), reading.perm)])
        seen: set[int] = set()
        while pending:
            root, order = pending.popleft()
            if root in seen:
                continue
            seen.add(root)
            if objection := self.classes.objection(root, order):
                return objection
            pending.extend(self.placement.across(root, order, neighbours[root][0]))
        others = [
            layer_name(other.node)
            for root in seen
            for other in neighbours[root][1]
            if other is not reading and self.placement.remaining(other).is_identity
        ]
        if others:
            return f"its input is in the order that {_listed(others)} reads"
        return "another order would cost more elsewhere"


def _listed(names: list[str]) -> str:
    shown = ", ".join(names[:4])
    return shown if len(names) <= 4 else f"{shown} and {len(names) - 4} more"
