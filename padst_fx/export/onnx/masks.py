"""Attention masks that hide nothing: models make them of constants, and runtimes would add them."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

_ATTENTION = torch.ops.aten.scaled_dot_product_attention.default
# They repeat entries, as many times as a symbol says, and make none.
_REPEATING = (torch.ops.aten.expand.default,)


def without_idle_masks(program: GraphModule) -> GraphModule:
    """The program with attention unmasked where its boolean mask is true at every entry, whatever
    the inputs: one computed from constants alone. The program itself stays."""
    if not any(_idle(program.graph.nodes)):
        return program
    changed = GraphModule(program, copy.deepcopy(program.graph))
    for node in list(_idle(changed.graph.nodes)):
        _unmask(node)
    changed.graph.eliminate_dead_code()
    changed.recompile()
    return changed


def _idle(nodes: Iterable[Node]) -> Iterator[Node]:
    for node in nodes:
        mask = _mask(node) if node.target == _ATTENTION else None
        if mask is not None and _is_true(mask):
            yield node


def _mask(node: Node) -> Node | None:
    given = node.args[3] if len(node.args) > 3 else node.kwargs.get("attn_mask")
    return given if isinstance(given, Node) else None


def _unmask(node: Node) -> None:
    if len(node.args) > 3:
        node.update_arg(3, None)
    else:
        node.update_kwarg("attn_mask", None)


def _is_true(mask: Node) -> bool:
    while mask.target in _REPEATING:
        mask = mask.args[0]  # type: ignore[assignment]
    value = _constant(mask)
    return isinstance(value, Tensor) and value.dtype == torch.bool and bool(value.all())


def _constant(node: Node) -> Any:
    """The value of a node that depends on no input, weight or symbol, else None."""
    behind = [node]
    for each in behind:
        if not _is_fixed(each):
            return None
        behind += [source for source in each.all_input_nodes if source not in behind]
    values: dict[Node, Any] = {}
    for each in sorted(behind):
        args, kwargs = map_arg((each.args, each.kwargs), values.__getitem__)
        values[each] = each.target(*args, **kwargs)  # type: ignore[operator]
    return values[node]


def _is_fixed(node: Node) -> bool:
    return (
        node.op == "call_function"
        and isinstance(node.target, torch._ops.OpOverload)
        and torch.Tag.nondeterministic_seeded not in node.target.tags
    )
