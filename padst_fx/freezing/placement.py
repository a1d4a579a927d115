"""The order of every class of axes: as few and as cheap gathers as possible, by minimum cuts.

A labelling gives each class an order. It costs what its gathers cost: a pass over the tensor at
every seam whose two sides differ, and a little at every sparse layer that must still read through
a permutation. Starting with the identity everywhere, every order that some layer would like is
tried as an *expansion*: each class keeps its order or takes the new one, and the best choice for
all classes together is a minimum cut (Boykov, Veksler and Zabih, Fast approximate energy
minimization via graph cuts, 2001). With one order to try the result is the optimum.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from padst_fx.freezing.order import Order
from padst_fx.freezing.trace import Reading, Seam, Trace

KEEP, TAKE = "keep", "take"


@dataclass
class Placement:
    """Orders by class; classes made of several take theirs from their parts."""

    trace: Trace
    absorbs: Callable[[Reading, Order], bool]
    orders: dict[int, Order] = field(default_factory=dict)

    @classmethod
    def best(cls, trace: Trace, absorbs: Callable[[Reading, Order], bool]) -> Placement:
        """The cheapest placement found. `absorbs` says which orders a layer reads for nothing."""
        placement = cls(trace, absorbs)
        neighbours = placement.neighbours()
        improved = True
        while improved:
            improved = False
            for axis, order in placement._wishes():
                if placement.order(axis) != order:
                    improved |= placement._expand(axis, order, neighbours)
        return placement

    def order(self, axis: int) -> Order:
        """The order of an axis."""
        root = self.trace.classes.find(axis)
        terms = self.trace.classes.terms(root)
        if terms.parts:
            return Order.side_by_side(self.order(part) for part in terms.parts)
        return self.orders.get(root) or Order.identity(terms.size)

    def remaining(self, reading: Reading) -> Order:
        """What a sparse layer still has to read through."""
        return self.order(reading.axis).inverse.then(reading.perm)

    def gather(self, seam: Seam) -> Order:
        """What has to be gathered at a seam."""
        target = self.order(seam.target)
        wanted = target if seam.index is None else seam.index.then(target)
        return self.order(seam.source).inverse.then(wanted)

    def cost(self, seams: list[Seam], readings: list[Reading]) -> float:
        """What gathers at these seams and readings cost."""
        return sum(seam.cost for seam in seams if not self.gather(seam).is_identity) + sum(
            reading.cost
            for reading in readings
            if not self.absorbs(reading, self.remaining(reading))
        )

    def _wishes(self) -> Iterator[tuple[int, Order]]:
        """Orders that would save something, and where: dearest first."""
        wishes = [(r.cost, r.axis, r.perm) for r in self.trace.readings]
        for seam in self.trace.seams:
            if seam.index is not None:
                wishes.append((seam.cost, seam.source, seam.index.then(self.order(seam.target))))
                back = seam.index.inverse.then(self.order(seam.source))
                wishes.append((seam.cost, seam.target, back))
        wishes.sort(key=lambda wish: -wish[0])
        yield from ((axis, order) for _, axis, order in wishes)

    def neighbours(self) -> dict[int, tuple[list[Seam], list[Reading]]]:
        """The seams and readings of every class."""
        find = self.trace.classes.find
        found: dict[int, tuple[list[Seam], list[Reading]]] = defaultdict(lambda: ([], []))
        for seam in self.trace.seams:
            for root in {find(seam.source), find(seam.target)}:
                found[root][0].append(seam)
        for reading in self.trace.readings:
            found[find(reading.axis)][1].append(reading)
        return found

    def _expand(
        self, axis: int, order: Order, neighbours: dict[int, tuple[list[Seam], list[Reading]]]
    ) -> bool:
        """Let the classes around `axis` take an order where that pays; whether any did."""
        takes = self._reach(axis, order, neighbours)
        if not takes:
            return False
        seams = list({id(s): s for root in takes for s in neighbours[root][0]}.values())
        readings = [reading for root in takes for reading in neighbours[root][1]]
        chosen = self._cut(takes, seams, readings)
        before, old = self.cost(seams, readings), dict(self.orders)
        self.orders.update({root: takes[root] for root in chosen})
        if self.cost(seams, readings) < before:
            return True
        self.orders = old
        return False

    def _reach(
        self, axis: int, order: Order, neighbours: dict[int, tuple[list[Seam], list[Reading]]]
    ) -> dict[int, Order]:
        """The classes that could take the order, each as it looks behind the gathers between."""
        classes = self.trace.classes
        takes: dict[int, Order] = {}
        pending = [(classes.find(axis), order)]
        while pending:
            root, order = pending.pop()
            if root in takes or classes.terms(root).parts or classes.objection(root, order):
                continue
            takes[root] = order
            pending.extend(self.across(root, order, neighbours[root][0]))
        return takes

    def across(
        self, root: int, order: Order, seams: Iterable[Seam]
    ) -> Iterator[tuple[int, Order]]:
        """The classes beyond a class's seams, and the orders in which none needs a gather."""
        find = self.trace.classes.find
        for seam in seams:
            index = seam.index or Order.identity(order.size)
            if find(seam.source) == root:
                yield find(seam.target), index.inverse.then(order)
            if find(seam.target) == root:
                yield find(seam.source), index.then(order)

    def _cut(
        self, takes: dict[int, Order], seams: list[Seam], readings: list[Reading]
    ) -> set[int]:
        """The classes on the side of the new order in a minimum cut."""
        import networkx as nx

        graph = nx.DiGraph()
        graph.add_nodes_from((KEEP, TAKE))
        find = self.trace.classes.find

        def add(tail: object, head: object, capacity: float) -> None:
            if capacity > 0:
                present = graph.get_edge_data(tail, head, {"capacity": 0.0})["capacity"]
                graph.add_edge(tail, head, capacity=present + capacity)

        def alone(root: int, keep: float, take: float) -> None:
            add(TAKE, root, keep)
            add(root, KEEP, take)

        for reading in readings:
            root = find(reading.axis)
            left = [old.inverse.then(reading.perm) for old in (self.order(root), takes[root])]
            keep, take = (0.0 if self.absorbs(reading, order) else reading.cost for order in left)
            alone(root, keep, take)
        for seam in seams:
            source, target = find(seam.source), find(seam.target)
            costs = {
                (a, b): self._seam_cost(seam, takes if a else {}, takes if b else {})
                for a in (False, True)
                for b in (False, True)
            }
            if source == target:
                alone(source, costs[False, False], costs[True, True])
            elif source not in takes or target not in takes:
                inside, mixed = (target, (False, True)) if source not in takes else (
                    source, (True, False)
                )  # fmt: skip
                alone(inside, costs[False, False], costs[mixed])
            else:
                # Keep/keep and take/take are alone's, what is left of the mixed ones the edge's.
                both_keep, both_take = costs[False, False], costs[True, True]
                alone(source, both_keep / 2, both_take / 2)
                alone(target, both_keep / 2, both_take / 2)
                mean = (both_keep + both_take) / 2
                add(source, target, costs[True, False] - mean)
                add(target, source, costs[False, True] - mean)
        _, (taking, _) = nx.minimum_cut(graph, TAKE, KEEP)
        return {root for root in taking if root != TAKE}

    def _seam_cost(
        self, seam: Seam, source: dict[int, Order], target: dict[int, Order]
    ) -> float:
        """A seam's cost with new orders on some of its sides."""
        find = self.trace.classes.find
        before = source.get(find(seam.source)) or self.order(seam.source)
        after = target.get(find(seam.target)) or self.order(seam.target)
        wanted = after if seam.index is None else seam.index.then(after)
        return 0.0 if before == wanted else seam.cost
