"""Gathers and scatters of the last axis as graph nodes, and permutations put one behind another."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Graph, Node
from torch.fx.experimental.symbolic_shapes import statically_known_true

from padst_fx.passes.projection_op import arguments, call, value

aten = torch.ops.aten


def last_axis_index(indices: Any, features: int | torch.SymInt, dimensions: int) -> Node | None:
    """The index of `x[..., index]` if it has an entry for each of x's features, else None."""
    if not isinstance(indices, (list, tuple)) or len(indices) != dimensions:
        return None
    index = indices[-1]
    found = value(index)
    whole = (
        all(entry is None for entry in indices[:-1])
        and found is not None
        and found.dim() == 1
        and found.dtype in (torch.int32, torch.int64)
        and statically_known_true(found.shape[0] == features)
    )
    return index if whole else None


def known_permutations(graph: Graph) -> set[Node]:
    """Every node that is a permutation by contract: one of our ops takes it as its `perm`."""
    ours = (
        node
        for node in graph.nodes
        if isinstance(node.target, torch._ops.OpOverload) and node.target.namespace == "padst"
    )
    return {perm for node in ours if isinstance(perm := arguments(node).get("perm"), Node)}


def reads_through(user: Node, source: Node) -> bool:
    """Whether `user` is one of our ops that reads `source` through its own `perm`, and only so."""
    target = user.target
    if not isinstance(target, torch._ops.OpOverload) or target.namespace != "padst":
        return False
    given = arguments(user)
    others = [argument for name, argument in given.items() if name != "x"]
    return given.get("x") is source and "perm" in given and source not in others


def permuted(op: Node, perm: Node) -> Node:
    """The same op with another `perm`, put before it."""
    assert isinstance(op.target, torch._ops.OpOverload)
    with op.graph.inserting_before(op):
        return call(op.graph, op.target, tuple((arguments(op) | {"perm": perm}).values()), like=op)


class Composer:
    """Makes `index[perm]`, int32, once for every pair; `perm` of length 0 is the identity.

    Ask in the order of the graph: the first one asked for is put before its op.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.made: dict[tuple[Node, Node], Node] = {}

    def compose(self, index: Node, perm: Node, before: Node) -> Node:
        """An index that reads as `perm` does from what `index` has read."""
        if (index, perm) not in self.made:
            with self.graph.inserting_before(before):
                self.made[index, perm] = self._make(index, perm)
        return self.made[index, perm]

    def _make(self, index: Node, perm: Node) -> Node:
        own = value(perm)
        assert own is not None
        if own.shape[0] > 0:
            index = call(self.graph, aten.index.Tensor, (index, [perm]), like=perm)
        to_int = torch.ops.prims.convert_element_type.default
        return call(self.graph, to_int, (index, torch.int32), like=perm)
