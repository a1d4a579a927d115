"""Reading one node of an exported graph."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

from padst_fx.projections import operators


def arguments(node: fx.Node) -> tuple[Any, ...]:
    return node.args


def is_node(argument: Any) -> bool:
    return isinstance(argument, fx.Node)


def is_float(node: fx.Node) -> bool:
    """Whether the node is, or has among its outputs, a floating-point or complex tensor."""
    return any(
        isinstance(leaf, torch.Tensor) and (leaf.is_floating_point() or leaf.is_complex())
        for leaf in pytree.tree_leaves(node.meta.get("val"))
    )


def operator_name(node: fx.Node) -> str:
    """The ATen operator's name without the mark of its in-place form; others' with namespace."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return str(node.target)
    namespace, _, name = node.target._schema.name.partition("::")
    return name.rstrip("_") if namespace == "aten" else node.target._schema.name


def is_soft_cap(node: fx.Node, name: str) -> bool:
    """Whether it is the tanh of `cap * tanh(x / cap)`, a bound on logits and no activation."""
    neighbours = [*node.all_input_nodes, *node.users]
    return name == "tanh" and all(
        isinstance(n.target, torch._ops.OpOverload)
        and operator_name(n) in operators.PRODUCTS
        and len(n.all_input_nodes) == 1
        for n in neighbours
    )


def swaps_last_axes(node: fx.Node, name: str) -> bool:
    if name in ("t", "mT", "adjoint", "numpy_T"):
        return True
    if name == "permute":
        return [from_end(node, axis) for axis in arguments(node)[1]][-2:] == [-1, -2]
    if name in ("transpose", "swapaxes", "swapdims"):
        return {from_end(node, axis) for axis in arguments(node)[1:3]} == {-1, -2}
    return False


def from_end(node: fx.Node, axis: Any) -> int:
    return int(axis) if axis < 0 else int(axis) - node.meta["val"].dim()


def _shape(node: fx.Node) -> tuple[int, ...]:
    return tuple(int(size) for size in node.meta["val"].shape)


def matmul_shapes(
    name: str, left: fx.Node, right: fx.Node
) -> tuple[tuple[int, int], tuple[int, int]]:
    """[out, in] of the left factor and of the right one, were it the weight."""
    a, b = ((1, 1, *_shape(factor))[-2:] for factor in (left, right))
    return (a[0], a[1]), ((b[0], b[1]) if name == "linear" else (b[1], b[0]))


def with_arrow(terms: str) -> str:
    """An einsum's equation with its output written out: the letters used once, in order."""
    if "->" in terms:
        return terms
    letters = sorted(set(terms) - set(",."))
    ellipsis = "..." if "..." in terms else ""
    return f"{terms}->{ellipsis}" + "".join(x for x in letters if terms.count(x) == 1)


def einsum_shapes(
    terms: str, left: fx.Node, right: fx.Node
) -> tuple[tuple[int, int], tuple[int, int]]:
    factors, _, result = terms.partition("->")
    shapes = []
    for factor, letters in zip((left, right), factors.split(","), strict=True):
        outputs = inputs = 1
        named = zip(reversed(letters.replace("...", "")), reversed(_shape(factor)), strict=False)
        for letter, size in named:
            if letter in result:
                outputs *= size
            else:
                inputs *= size
        shapes.append((outputs, inputs))
    return shapes[0], shapes[1]


def key_first(terms: str) -> bool:
    """Whether, of an einsum's last two axes, the left factor owns the last one."""
    factors, _, result = terms.partition("->")
    left, right = factors.split(",")
    last, before = result[-1:], result[-2:-1]
    if last in left and last in right:
        return before in right and before not in left
    return last in left
