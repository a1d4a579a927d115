"""Rules of matrix products: contracted axes agree, the others pass."""

from __future__ import annotations

from typing import Any

from torch.fx import Node

from padst_fx.freezing.broadcast import agreed
from padst_fx.freezing.layout import Group, Layout, sizes_of
from padst_fx.freezing.trace import Trace
from padst_fx.passes.projection_op import arguments
from padst_fx.projections import nodes


def linear(trace: Trace, node: Node) -> Layout:
    """`x W^T + b`: inputs agree with columns; results have the order of rows and bias."""
    source, weight, *rest = nodes.arguments(node)
    bias = rest[0] if rest else node.kwargs.get("bias")
    return projected(trace, node, source, weight, (0, 1), bias)


def addmm(trace: Trace, node: Node) -> Layout | None:
    """`b + x W`."""
    bias, source, weight = nodes.arguments(node)[:3]
    if node.kwargs:
        return None
    return projected(trace, node, source, weight, (1, 0), bias)


def projected(
    trace: Trace, node: Node, source: Node, weight: Node, sides: tuple[int, int], bias: object
) -> Layout:
    """A product with a matrix whose output and input dimensions are `sides`."""
    reason = f"{node.name} multiplies a part of it"
    inputs, matrix = trace.read(node, source), trace.read(node, weight)
    last = source.meta["val"].dim() - 1
    trace.agree(inputs.at(last), matrix.at(sides[1]), reason)
    rows = matrix.at(sides[0])
    out = node.meta["val"].dim() - 1
    if isinstance(bias, Node):
        own = trace.read(node, bias)
        if bias.meta["val"].dim() > 1:
            trace.fix_all([own], f"{node.name} adds it to a product")
        own_last = own.at(bias.meta["val"].dim() - 1)
        if own_last is not None:
            trace.agree(rows, own_last, reason)
    feature = inputs.at(last)
    kept = inputs.without(feature) if feature else inputs
    return Layout((*kept.groups, *((Group((out,), rows.axis),) if rows else ())))


def matmul(trace: Trace, node: Node) -> Layout | None:
    """A product of two stacks of matrices; heads that both have must stay in place."""
    left, right = nodes.arguments(node)[:2]
    ranks = [len(sizes_of(left)), len(sizes_of(right))]
    if min(ranks) < 2:
        return None
    if ranks[1] == 2:
        return projected(trace, node, left, right, (1, 0), None)
    rank = node.meta["val"].dim()
    reason = f"{node.name} needs heads in place"
    read = [_aligned(trace, node, factor, rank) for factor in (left, right)]
    (a, sizes_a), (b, sizes_b) = read
    trace.agree(a.at(rank - 1), b.at(rank - 2), reason)
    *_, height, width = sizes_of(node)
    rows = carried(trace, a, rank - 2, height, reason)
    columns = carried(trace, b, rank - 1, width, reason)
    batch = agreed_batch(trace, node, [(a, sizes_a), (b, sizes_b)], rank, reason)
    taken = {dim for group in (*rows, *columns) for dim in group.dims}
    kept = [group for group in batch.groups if not set(group.dims) & taken]
    return Layout((*kept, *rows, *columns))


def agreed_batch(
    trace: Trace,
    node: Node,
    inputs: list[tuple[Layout, dict[int, object]]],
    rank: int,
    reason: str,
) -> Layout:
    """The dimensions in front of the matrices: whole axes agree, parts of others stay in place."""
    fronts = []
    for layout, sizes in inputs:
        front = Layout(tuple(g for g in layout.groups if g.is_whole and g.dims[0] < rank - 2))
        fronts.append((front, {dim: size for dim, size in sizes.items() if dim < rank - 2}))
    for dim in range(rank - 2):
        if any((group := layout.at(dim)) and not group.is_whole for layout, _ in inputs):
            for front, _ in fronts:
                trace.fix(front.at(dim), reason)
    return agreed(trace, node, fronts)


def _aligned(
    trace: Trace, node: Node, factor: Node, rank: int
) -> tuple[Layout, dict[int, object]]:
    sizes = sizes_of(factor)
    places = {dim: dim + rank - len(sizes) for dim in range(len(sizes))}
    layout = trace.read(node, factor)
    moved = Layout(tuple(group.moved(places) for group in layout.groups))
    return moved, {places[dim]: size for dim, size in enumerate(sizes)}


def carried(trace: Trace, layout: Layout, dim: int, size: Any, reason: str) -> list[Group]:
    """The group of a dimension that a product passes on; one taken apart stays within heads."""
    group = layout.at(dim)
    if group is None:
        return []
    if group.dims[-1] != dim:
        trace.fix(group, reason)
    elif not group.is_whole:
        trace.classes.keep_in_place(group.axis, size, reason)
    return [group]


def convolution(trace: Trace, node: Node) -> Layout | None:
    """A convolution in one group mixes channels as a product does; places stay."""
    given = arguments(node)
    if given.get("groups", 1) != 1:
        return None
    rank = node.meta["val"].dim()
    reason = f"{node.name} needs places in order"
    inputs, kernel = trace.read(node, given["input"]), trace.read(node, given["weight"])
    channels = inputs.at(1) if given["input"].meta["val"].dim() == rank else None
    for group in (*inputs.groups, *kernel.groups):
        if group.dims[-1] >= 2:
            trace.fix(group, reason)
    trace.agree(channels, kernel.at(1), f"{node.name} multiplies a part of it")
    rows = kernel.at(0)
    if isinstance(given.get("bias"), Node):
        trace.agree(rows, trace.read(node, given["bias"]).at(0), f"{node.name} adds a bias")
    places = [
        group
        for dim in range(2, rank)
        for group in trace.new_group(dim, sizes_of(node)[dim], reason)
    ]
    batch = [group for group in inputs.groups if group.dims == (0,)]
    return Layout((*batch, *([Group((1,), rows.axis)] if rows else []), *places))


RULES = {
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), convolution),
    "linear": linear,
    "addmm": addmm,
    "mm": matmul,
    "bmm": matmul,
    "matmul": matmul,
}
