"""Follows every axis of an exported graph: what must share an order, and where orders may meet."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from padst_fx.freezing.axis_classes import AxisClasses
from padst_fx.freezing.layout import Group, Layout, is_static, sizes_of
from padst_fx.freezing.order import Order
from padst_fx.projections import nodes


@dataclass(frozen=True)
class Seam:
    """A place where a gather could stand: `consumer` reads `producer` along `dim`.

    Without one the axes `source` and `target` have the same order; a gather of the graph itself
    (`index`) is gone if the source's order is that of the target read through the index.
    """

    producer: Node
    consumer: Node
    dim: int
    source: int
    target: int
    cost: float
    index: Order | None = None


@dataclass(frozen=True)
class Reading:
    """A sparse layer that reads the `axis` of its input through `perm`."""

    node: Node
    axis: int
    perm: Order
    cost: float


@dataclass
class Trace:
    """The classes of a graph's axes. Rules call its methods while the graph is walked."""

    module: GraphModule
    classes: AxisClasses = field(default_factory=AxisClasses)
    layouts: dict[Node, Any] = field(default_factory=dict)
    seams: list[Seam] = field(default_factory=list)
    readings: list[Reading] = field(default_factory=list)
    _reads: dict[tuple[Node, Node], Layout] = field(default_factory=dict)

    @classmethod
    def of(cls, module: GraphModule, rules: dict[str, Callable[[Trace, Node], Any]]) -> Trace:
        """Walk the graph of an exported module with a rule per operator; others are barriers."""
        trace = cls(module)
        for node in module.graph.nodes:
            trace._visit(node, rules)
        trace._join_seams_of_divided_axes()
        return trace

    def _visit(self, node: Node, rules: dict[str, Callable[[Trace, Node], Any]]) -> None:
        if node.op == "get_attr":
            self.layouts[node] = self.new_layout(node, None)
        elif node.op == "placeholder":
            self.layouts[node] = self.new_layout(node, f"{node.target} is an input of the model")
        elif node.op == "output":
            self.fix_inputs(node, "it is an output of the model")
        else:
            rule = rules.get(nodes.operator_name(node))
            layout = None if rule is None or _writes(node) else rule(self, node)
            self.layouts[node] = self._completed(
                node, self.barrier(node) if layout is None else layout
            )

    def _completed(self, node: Node, found: Any) -> Any:
        """The layouts with an axis, barred, for each dimension that a rule says nothing of."""
        value = node.meta.get("val")
        if isinstance(found, list):
            assert isinstance(value, (list, tuple))
            pairs = zip(found, value, strict=True)
            return [self._complete(node, layout, tensor) for layout, tensor in pairs]
        return self._complete(node, found, value)

    def _complete(self, node: Node, layout: Layout | None, value: Any) -> Layout | None:
        if layout is None or not isinstance(value, Tensor):
            return layout
        missing = [
            group
            for dim, size in enumerate(value.shape)
            if layout.at(dim) is None
            for group in self.new_group(dim, size, f"{node.name} cuts, merges or picks entries")
        ]
        return Layout((*layout.groups, *missing))

    # What rules ask for.

    def constant(self, node: Any) -> Tensor | None:
        """The tensor that a node stands for, None if it is computed."""
        if not isinstance(node, Node) or node.op != "get_attr":
            return None
        value: Any = self.module
        for part in str(node.target).split("."):
            value = getattr(value, part)
        return value if isinstance(value, Tensor) else None

    def read(self, consumer: Node, producer: Node) -> Layout:
        """The layout in which `consumer` reads a tensor.

        Axes are its own, with a seam to the producer's, but those of constants, which can be
        permuted for good, and those that a view has taken apart.
        """
        layout = self.layouts[producer]
        if producer.op == "get_attr":
            return layout
        key = (consumer, producer)
        if key not in self._reads:
            groups = (self._seamed(group, consumer, producer) for group in layout.groups)
            self._reads[key] = Layout(tuple(groups))
        return self._reads[key]

    def _seamed(self, group: Group, consumer: Node, producer: Node) -> Group:
        if not group.is_whole:
            return group
        target = self.classes.new(self.classes.terms(group.axis).size)
        cost = pass_cost(producer)
        self.seams.append(Seam(producer, consumer, group.dims[0], group.axis, target, cost))
        return Group(group.dims, target)

    def gather(self, consumer: Node, producer: Node, dim: int, index: Order) -> Layout:
        """The layout of a gather that is in the graph, which may go or move."""
        layout = self.read(consumer, producer)
        group = layout.at(dim)
        assert group is not None
        result = self.classes.new(index.size)
        cost = pass_cost(consumer)
        if group.is_whole:
            self.seams.append(Seam(producer, consumer, dim, group.axis, result, cost, index))
        else:
            reason = f"{consumer.name} reorders a part of it"
            self.fix(group, reason)
            self.classes.fix(result, reason)
        return Layout((*layout.without(group).groups, Group((dim,), result)))

    def new_layout(self, node: Node, fixed: str | None) -> Layout:
        """A layout of new axes."""
        return Layout(
            tuple(
                Group((dim,), self.classes.new(size, fixed))
                for dim, size in enumerate(_sizes(node))
                if is_static(size) and size > 1
            )
        )

    def new_group(self, dim: int, size: Any, fixed: str | None = None) -> tuple[Group, ...]:
        """A new axis along one dimension; nothing for one entry or a dynamic size."""
        if not is_static(size) or size <= 1:
            return ()
        return (Group((dim,), self.classes.new(size, fixed)),)

    def fix(self, group: Group | None, reason: str) -> None:
        """Bar a group from being permuted."""
        if group is not None:
            self.classes.fix(group.axis, reason)

    def fix_all(self, layouts: Sequence[Layout], reason: str) -> None:
        """Bar all groups of some layouts."""
        for layout in layouts:
            for group in layout.groups:
                self.fix(group, reason)

    def fix_inputs(self, node: Node, reason: str) -> None:
        """Bar all that a node reads."""
        self.fix_all([self.read(node, i) for i in node.all_input_nodes if self._is_laid_out(i)],
                     reason)  # fmt: skip

    def agree(self, one: Group | None, other: Group | None, reason: str) -> None:
        """Make two groups one class, or bar both where one of them is no whole axis."""
        if one is not None and other is not None and one.is_whole and other.is_whole:
            self.classes.union(one.axis, other.axis)
        elif one is not None or other is not None:
            self.fix(one, reason)
            self.fix(other, reason)

    def _is_laid_out(self, node: Node) -> bool:
        return isinstance(self.layouts.get(node), Layout)

    def barrier(self, node: Node) -> Any:
        """Bar all that a node reads and writes."""
        reason = f"{node.name} ({nodes.operator_name(node)}) needs it as it is"
        self.fix_inputs(node, reason)
        value = node.meta.get("val")
        if isinstance(value, Tensor):
            return self.new_layout(node, reason)
        if isinstance(value, (tuple, list)):
            return [
                Layout(
                    tuple(
                        group
                        for dim, size in enumerate(item.shape)
                        for group in self.new_group(dim, size, reason)
                    )
                )
                if isinstance(item, Tensor)
                else None
                for item in value
            ]
        return None

    def _join_seams_of_divided_axes(self) -> None:
        """No gather stands where an axis made of several begins or ends."""
        changed = True
        while changed:
            changed = False
            for seam in self.seams:
                ends = (self.classes.find(seam.source), self.classes.find(seam.target))
                if ends[0] == ends[1] or not any(self.classes.terms(end).parts for end in ends):
                    continue
                changed = True
                if seam.index is None:
                    self.classes.union(*ends)
                elif not all(self.classes.terms(end).fixed for end in ends):
                    for end in ends:
                        self.classes.fix(end, f"{seam.consumer.name} reorders an axis of parts")
                else:
                    changed = False


def pass_cost(node: Node) -> float:
    """What copying a node's tensor once through a gather costs: bytes read and written."""
    value = node.meta["val"]
    count = 1
    for size in value.shape:
        count *= size if is_static(size) else hint(size)
    return 2.0 * count * value.element_size()


def hint(size: Any) -> int:
    """The size that a dynamic dimension had in the example inputs."""
    return size if is_static(size) else int(size.node.hint)


def _sizes(node: Node) -> list[Any]:
    return sizes_of(node) if isinstance(node.meta.get("val"), Tensor) else []


def _writes(node: Node) -> bool:
    target = node.target
    return isinstance(target, torch._ops.OpOverload) and target._schema.is_mutable
