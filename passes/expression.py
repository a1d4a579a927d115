"""Matching a traced function of one tensor against the users of a graph node."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Node

aten = torch.ops.aten

_COMMUTATIVE = frozenset({aten.add.Tensor, aten.mul.Tensor})


@dataclass(frozen=True)
class Match:
    """Where an expression was found: its result, and the nodes between its input and that."""

    root: Node
    interior: frozenset[Node]


@dataclass(frozen=True)
class Expression:
    """A function of one tensor as a graph: from `source`, its only placeholder, to `root`.

    The comparison is of the written-out expression: shared and repeated subexpressions are the
    same to it, and the operands of additions and multiplications may be swapped.
    """

    graph: Graph
    source: Node
    root: Node

    @classmethod
    def trace(cls, function: Callable[[Tensor], Tensor], dtype: torch.dtype) -> Expression:
        """`function` as Inductor's decompositions write it for a tensor of `dtype`."""
        graph = _trace(function, torch.ones(2, 2, dtype=dtype))
        (source,) = graph.find_nodes(op="placeholder")
        (output,) = graph.find_nodes(op="output")
        return cls(graph, source, output.args[0])

    def match(self, start: Node) -> Match | None:
        """This expression of `start`, if nothing else uses `start` or what lies in between."""
        for root in self._candidates(start):
            if self._same(self.root, root, start):
                interior = _between(start, root)
                inside = {*interior, root}
                if all(user in inside for node in (start, *interior) for user in node.users):
                    return Match(root, interior)
        return None

    def _candidates(self, start: Node) -> Iterable[Node]:
        """Nodes that may be the root: of its kind, and near enough after `start`."""
        seen: set[Node] = set()
        frontier = [start]
        for _ in range(len(self.graph.nodes)):
            frontier = [user for node in frontier for user in node.users if user not in seen]
            seen.update(frontier)
        return sorted(node for node in seen if node.target is self.root.target)

    def _same(self, pattern: Any, actual: Any, start: Node) -> bool:
        """Whether `actual` is the subexpression `pattern` with `start` as the source."""
        if pattern is self.source:
            return actual is start
        if isinstance(pattern, (list, tuple)):
            return (
                isinstance(actual, (list, tuple))
                and len(pattern) == len(actual)
                and all(self._same(p, a, start) for p, a in zip(pattern, actual, strict=True))
            )
        if not isinstance(pattern, Node):
            return type(pattern) is type(actual) and pattern == actual
        if not isinstance(actual, Node) or actual.target is not pattern.target:
            return False
        if pattern.kwargs != actual.kwargs:
            return False
        if self._same(pattern.args, actual.args, start):
            return True
        swapped = pattern.target in _COMMUTATIVE and len(actual.args) == 2
        return swapped and self._same(pattern.args, actual.args[::-1], start)


def _trace(function: Callable[[Tensor], Tensor], example: Tensor) -> Graph:
    """The inference graph of `function`, traced apart from whatever is being compiled now."""
    from torch._dispatch.python import enable_python_dispatcher
    from torch._inductor.decomposition import select_decomp_table
    from torch._subclasses.fake_tensor import unset_fake_temporarily
    from torch.fx.experimental.proxy_tensor import make_fx

    with (
        torch._guards.tracing(None),
        unset_fake_temporarily(),
        torch.no_grad(),
        torch._C._DisableAutocast(),
        enable_python_dispatcher(),
    ):
        return make_fx(lambda x: function(x), select_decomp_table())(example).graph


def _between(start: Node, root: Node) -> frozenset[Node]:
    """The nodes on the way back from `root` to `start`, both excluded."""
    seen: set[Node] = set()
    pending = [root]
    while pending:
        inputs = set(pending.pop().all_input_nodes) - {start} - seen
        seen |= inputs
        pending.extend(inputs)
    return frozenset(seen)
