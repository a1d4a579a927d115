"""Bias fusion: `op(x, ..., bias=absent) + b` becomes `op(x, ..., bias=b)`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.fx import Graph, Node
from torch.fx.experimental.symbolic_shapes import statically_known_true

from padst_fx.passes.projection_op import call, is_plain_projection, lacks_bias, rewrite, value

aten = torch.ops.aten

# These keep the last dimension's entries where they are when they keep its size.
_ROW_PRESERVING = frozenset(
    {aten.expand.default, aten.unsqueeze.default, aten.view.default, aten.reshape.default}
)


@dataclass(frozen=True)
class FuseBias:
    """Fuses an addition of one row, the same for every token, into the projection before it.

    The addend is `[out]`, or `[1, ..., 1, out]`, or either of them expanded; on either side of
    `aten.add` with `alpha=1`, and of the projection's dtype and device. The projection has no
    other user, no bias yet and no activation, and the sum has its shape.
    """

    name: ClassVar[str] = "fuse_bias"

    def apply(self, graph: Graph) -> int:
        matches = 0
        for node in list(graph.nodes):
            for op, addend in _candidates(node):
                row = _row_source(addend, value(op))
                if row is not None:
                    bias = _as_vector(graph, row, before=node)
                    node.replace_all_uses_with(rewrite(op, before=node, bias=bias))
                    graph.erase_node(node)
                    graph.erase_node(op)
                    matches += 1
                    break
        return matches


def _candidates(add: Node) -> list[tuple[Node, Node]]:
    """The operands of an addition as (projection, addend), where the projection may take it."""
    if add.target is not aten.add.Tensor or add.kwargs.get("alpha", 1) != 1:
        return []
    left, right = add.args[:2]
    return [(a, b) for a, b in ((left, right), (right, left)) if _fits(a, b, add)]  # type: ignore[misc]


def _fits(op: Any, addend: Any, add: Node) -> bool:
    if not is_plain_projection(op) or op is addend or len(op.users) > 1 or not lacks_bias(op):
        return False
    output, total, other = value(op), value(add), value(addend)
    assert output is not None
    return (
        total is not None
        and other is not None
        and total.dtype == output.dtype == other.dtype
        and output.device == other.device
        and _same_shape(total, output)
    )


def _row_source(addend: Node, output: Tensor | None) -> Node | None:
    """The node that holds the one row which `addend` repeats, or None if its rows differ."""
    assert output is not None
    node: Any = addend
    while (tensor := value(node)) is not None and tensor.dim() > 0:
        if not statically_known_true(tensor.shape[-1] == output.shape[-1]):
            return None
        if all(statically_known_true(size == 1) for size in tensor.shape[:-1]):
            return node if tensor.is_contiguous() else None
        if node.target not in _ROW_PRESERVING:
            return None
        node = node.args[0]
    return None


def _as_vector(graph: Graph, row: Node, before: Node) -> Node:
    """`row` as a node of shape `[out]`."""
    tensor = value(row)
    assert tensor is not None
    if tensor.dim() == 1:
        return row
    with graph.inserting_before(before):
        return call(graph, aten.reshape.default, (row, [tensor.shape[-1]]), like=row)


def _same_shape(a: Tensor, b: Tensor) -> bool:
    sizes = zip(a.shape, b.shape, strict=False)
    return a.dim() == b.dim() and all(statically_known_true(m == n) for m, n in sizes)
