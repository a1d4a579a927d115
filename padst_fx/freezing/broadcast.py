"""Agreement of tensors that are brought to one shape."""

from __future__ import annotations

from collections.abc import Sequence

from torch.fx import Node

from padst_fx.freezing.layout import Group, Layout, is_static, sizes_of
from padst_fx.freezing.trace import Trace


def broadcast(trace: Trace, node: Node, inputs: Sequence[Node]) -> Layout:
    """The layout of a result whose dimensions are those of all inputs, aligned at the end."""
    rank = node.meta["val"].dim()
    shifted = [_shifted(trace, node, source, rank) for source in inputs]
    present = [(layout, sizes) for layout, sizes in shifted if layout is not None]
    return agreed(trace, node, present)


def agreed(
    trace: Trace, node: Node, inputs: Sequence[tuple[Layout, dict[int, object]]]
) -> Layout:
    """One layout of inputs whose dimensions are numbered as the result's.

    Each comes with its sizes; a size of 1 is repeated and asks for nothing.
    """
    reason = f"{node.name} brings it together with what cannot be permuted alike"
    result: dict[tuple[int, ...], Group] = {}
    for dim in range(node.meta["val"].dim()):
        full = [layout for layout, sizes in inputs if _is_full(sizes.get(dim, 1))]
        groups = [layout.at(dim) for layout in full]
        found = [group for group in groups if group is not None]
        if not found:
            continue
        if len(found) < len(groups) or len({group.dims for group in found}) > 1:
            for group in found:
                trace.fix(group, reason)
        for group in found:
            first = result.setdefault(group.dims, group)
            trace.classes.union(first.axis, group.axis)
    disjoint: list[Group] = []
    for group in result.values():
        if not any(set(group.dims) & set(other.dims) for other in disjoint):
            disjoint.append(group)
    return Layout(tuple(disjoint))


def _is_full(size: object) -> bool:
    return not (is_static(size) and size == 1)


def _shifted(
    trace: Trace, node: Node, source: Node, rank: int
) -> tuple[Layout | None, dict[int, object]]:
    layout = trace.layouts.get(source)
    if not isinstance(layout, Layout):
        return None, {}
    sizes = sizes_of(source)
    by = rank - len(sizes)
    places = {dim: dim + by for dim in range(len(sizes))}
    read = trace.read(node, source)
    moved = Layout(tuple(group.moved(places) for group in read.groups))
    return moved, {places[dim]: size for dim, size in enumerate(sizes)}
