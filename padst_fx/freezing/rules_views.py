"""Rules of operators that rearrange, cut and join dimensions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.fx import Node

from padst_fx.freezing.layout import Group, Layout, is_static, matched_dims, sizes_of
from padst_fx.freezing.order import Order
from padst_fx.freezing.trace import Trace
from padst_fx.projections import nodes


def reshaped(trace: Trace, node: Node) -> Layout:
    """A view: dimensions that stay keep their axis, one taken apart is a group of several, and
    that group put together is one dimension again. Anything else must stay as it is."""
    source = nodes.arguments(node)[0]
    layout = trace.read(node, source)
    runs = matched_dims(sizes_of(source), sizes_of(node))
    places = {ins[0]: outs[0] for ins, outs in runs if len(ins) == len(outs) == 1}
    groups: list[Group] = []
    for group in layout.groups:
        if all(dim in places for dim in group.dims):
            groups.append(group.moved(places))
        elif (found := _regrouped(group, runs)) is not None:
            groups.append(found)
        else:
            trace.fix(group, f"{node.name} cuts or merges it")
    return Layout(tuple(groups))


def _regrouped(group: Group, runs: list[tuple[list[int], list[int]]]) -> Group | None:
    """A whole axis taken apart, or one taken apart put together."""
    for ins, outs in runs:
        if tuple(ins) == group.dims and (len(ins) == 1 or len(outs) == 1):
            return Group(tuple(outs), group.axis)
    return None


def permuted(trace: Trace, node: Node) -> Layout | None:
    """Dimensions in another order."""
    source, *rest = nodes.arguments(node)
    rank = source.meta["val"].dim()
    name = nodes.operator_name(node)
    if name == "permute":
        order = [dim % rank for dim in rest[0]]
    else:
        order = list(range(rank))
        one, other = [d % rank for d in (rest if rest else (-2, -1))] if rank > 1 else (0, 0)
        order[one], order[other] = order[other], order[one]
    places = {dim: place for place, dim in enumerate(order)}
    return _moved(trace.read(node, source), places)


def unsqueezed(trace: Trace, node: Node) -> Layout:
    """A new dimension of one entry."""
    source, dim = nodes.arguments(node)
    rank = source.meta["val"].dim()
    new = dim % (rank + 1)
    return _moved(trace.read(node, source), {d: d + (d >= new) for d in range(rank)})


def expanded(trace: Trace, node: Node) -> Layout:
    """Repeated entries are equal, so the new dimensions may be taken in any order."""
    source = nodes.arguments(node)[0]
    before, after = sizes_of(source), sizes_of(node)
    by = len(after) - len(before)
    layout = _moved(trace.read(node, source), {d: d + by for d in range(len(before))})
    new = [
        group
        for dim, size in enumerate(after)
        if dim < by or (is_static(before[dim - by]) and before[dim - by] == 1)
        for group in trace.new_group(dim, size)
    ]
    return Layout((*layout.groups, *new))


def selected(trace: Trace, node: Node) -> Layout:
    """One entry of a dimension."""
    source, dim, place = nodes.arguments(node)
    dim %= source.meta["val"].dim()
    layout = trace.read(node, source)
    return _entry(trace, node, layout, dim, place, sizes_of(source))


def unbound(trace: Trace, node: Node) -> list[Layout]:
    """All entries of a dimension."""
    source, *rest = nodes.arguments(node)
    dim = (rest[0] if rest else 0) % source.meta["val"].dim()
    layout, sizes = trace.read(node, source), sizes_of(source)
    return [_entry(trace, node, layout, dim, place, sizes) for place in range(sizes[dim])]


def _entry(
    trace: Trace, node: Node, layout: Layout, dim: int, place: int, sizes: list[Any]
) -> Layout:
    group = layout.at(dim)
    places = {d: d - (d > dim) for d in range(len(sizes))}
    if group is None:
        return _moved(layout, places)
    others = _moved(layout.without(group), places)
    if group.is_whole or group.dims[0] != dim:
        trace.fix(group, f"{node.name} takes one entry")
        return others
    count = sizes[dim]
    length = trace.classes.terms(group.axis).size // count
    part = trace.classes.divide(group.axis, [length] * count)[place]
    rest = tuple(places[d] for d in group.dims[1:])
    return Layout((*others.groups, Group(rest, part)))


def sliced(trace: Trace, node: Node) -> Layout:
    """Adjacent entries of a dimension."""
    args = nodes.arguments(node)
    source = args[0]
    given: tuple[Any, ...] = (*args[1:], *(0, None, None, 1)[len(args) - 1 :])
    dim, start, end, step = given
    dim %= source.meta["val"].dim()
    layout, before, after = trace.read(node, source), sizes_of(source), sizes_of(node)
    group = layout.at(dim)
    if group is None or str(before[dim]) == str(after[dim]):
        return layout
    others = layout.without(group).groups
    start, end = start or 0, before[dim] if end is None else end
    if step != 1 or not group.is_whole or not (is_static(start) and is_static(end)):
        trace.fix(group, f"{node.name} takes entries out of it")
        return Layout((*others, *trace.new_group(dim, after[dim], "it is a slice")))
    first, last, _ = slice(start, end).indices(before[dim])
    sizes = [size for size in (first, last - first, before[dim] - last) if size]
    part = trace.classes.divide(group.axis, sizes)[1 if first else 0]
    return Layout((*others, *((Group((dim,), part),) if last - first > 1 else ())))


def split(trace: Trace, node: Node) -> list[Layout] | None:
    """Adjacent parts of a dimension."""
    source, _, *rest = nodes.arguments(node)
    dim = (node.kwargs.get("dim", rest[0] if rest else 0)) % source.meta["val"].dim()
    layout = trace.read(node, source)
    group = layout.at(dim)
    sizes = [value.shape[dim] for value in node.meta["val"]]
    if group is None:
        return [layout] * len(sizes)
    others = layout.without(group).groups
    if not group.is_whole:
        trace.fix(group, f"{node.name} cuts it")
        return [Layout((*others, *trace.new_group(dim, s, "it is a part"))) for s in sizes]
    parts = trace.classes.divide(group.axis, sizes)
    return [Layout((*others, *(Group((dim,), part),) * (s > 1)))
            for part, s in zip(parts, sizes, strict=True)]  # fmt: skip


def concatenated(trace: Trace, node: Node) -> Layout:
    """Along the dimension each part has its own order, elsewhere all agree."""
    sources, *rest = nodes.arguments(node)
    rank = node.meta["val"].dim()
    dim = (node.kwargs.get("dim", rest[0] if rest else 0)) % rank
    layouts = [trace.read(node, source) for source in sources]
    reason = f"{node.name} joins what cannot be permuted alike"
    kept = list(layouts[0].groups)
    for other in range(rank):
        groups = [layout.at(other) for layout in layouts]
        if other == dim:
            continue
        first = groups[0]
        if first is None or any(group is None or group.dims != first.dims for group in groups):
            for group in groups:
                trace.fix(group, reason)
            continue
        for group in groups:
            assert group is not None
            trace.classes.union(first.axis, group.axis)
    along = [layout.at(dim) for layout in layouts]
    kept = [group for group in kept if dim not in group.dims]
    if any(group is None or not group.is_whole for group in along):
        for group in along:
            trace.fix(group, reason)
        return Layout((*kept, *trace.new_group(dim, sizes_of(node)[dim], reason)))
    whole = trace.new_group(dim, sizes_of(node)[dim])
    trace.classes.assemble(whole[0].axis, [group.axis for group in along if group])
    return Layout((*kept, *whole))


def gathered(trace: Trace, node: Node) -> Layout | None:
    """Entries picked by a constant index: a permutation may be moved, others may not."""
    if nodes.operator_name(node) == "index_select":
        source, dim, index = nodes.arguments(node)
    else:
        source, indices = nodes.arguments(node)
        given = [(dim, index) for dim, index in enumerate(indices) if index is not None]
        if len(given) != 1:
            return None
        dim, index = given[0]
    constant, sizes = trace.constant(index), sizes_of(source)
    dim %= len(sizes)
    if constant is None or constant.dim() != 1 or not is_static(sizes[dim]):
        return None
    if constant.numel() != sizes[dim] or sizes[dim] == 1 or constant.dtype.is_floating_point:
        return None
    try:
        order = Order.of(constant)
    except ValueError:
        return None
    return trace.gather(node, source, dim, order)


def _moved(layout: Layout, places: dict[int, int]) -> Layout:
    return Layout(tuple(group.moved(places) for group in layout.groups))


def _table(rule: Callable[[Trace, Node], Any], names: str) -> dict[str, Any]:
    return dict.fromkeys(names.split(), rule)


RULES: dict[str, Callable[[Trace, Node], Any]] = {
    **_table(reshaped, "view reshape _unsafe_view flatten unflatten squeeze view_as"),
    **_table(permuted, "permute transpose t mT numpy_T swapaxes swapdims"),
    **_table(expanded, "expand expand_as"),
    **_table(split, "split split_with_sizes chunk tensor_split"),
    **_table(gathered, "index_select index"),
    **_table(concatenated, "cat concat concatenate"),
    "unsqueeze": unsqueezed,
    "select": selected,
    "unbind": unbound,
    "slice": sliced,
}
