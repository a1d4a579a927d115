"""Rules of the sparse projections: what their outputs may be in, and what they read through."""

from __future__ import annotations

from torch.fx import Node

from padst_fx.freezing import sparse_order
from padst_fx.freezing.layout import Group, Layout
from padst_fx.freezing.order import Order
from padst_fx.freezing.trace import Reading, Trace, pass_cost
from padst_fx.passes.projection_op import NAMES, arguments


def projection(trace: Trace, node: Node) -> Layout | None:
    """`act(S Pi x + b)`: any order of the inputs at the price of reading through it; of the
    outputs those orders that the structure can be stored in; the bias follows."""
    named = arguments(node)
    tensors = {name: trace.constant(named[name]) for name in ("values", "perm", "bias")}
    values, perm, bias = tensors["values"], tensors["perm"], tensors["bias"]
    if values is None or perm is None or bias is None or trace.constant(_index(named)) is None:
        return None
    inputs = trace.read(node, named["x"])
    last = named["x"].meta["val"].dim() - 1
    feature = inputs.at(last)
    size = int(named["x"].meta["val"].shape[-1])
    trace.readings.append(
        Reading(
            node,
            _whole_axis(trace, feature, size, f"{node.name} reads a part of it"),
            Order.of(perm) if perm.numel() else Order.identity(size),
            sparse_order.READING_COST[kernel_of(node)] * pass_cost(named["x"]),
        )
    )
    kept = inputs.without(feature) if feature else inputs
    rows = trace.new_group(last, int(node.meta["val"].shape[-1]))
    if rows:
        reason = f"{node.name} writes its outputs in the order its structure is stored in"
        block = sparse_order.output_block(kernel_of(node), values)
        if block is None:
            trace.fix(rows[0], reason)
        else:
            trace.classes.keep_together(rows[0].axis, block, reason)
        if bias.numel():
            trace.agree(Group((0,), rows[0].axis), trace.read(node, named["bias"]).at(0), reason)
    return Layout((*kept.groups, *rows))


def _whole_axis(trace: Trace, group: Group | None, size: int, reason: str) -> int:
    """The axis of a group; where that is no whole one, an axis that stays as it is."""
    if group is not None and group.is_whole:
        return group.axis
    trace.fix(group, reason)
    return trace.classes.new(size, reason)


def kernel_of(node: Node) -> str:
    """`shift`, `gather_gemm` or `scatter_gemm`."""
    return str(node.target).split(".")[1]


def window_of(node: Node) -> int:
    """The columns that a number of the index counts in; only `gather_gemm` has windows."""
    return int(arguments(node).get("window", 0))


def _index(named: dict) -> Node:
    return named["offsets"] if "offsets" in named else named["index"]


RULES = {f"padst::{name}": projection for name in NAMES}
