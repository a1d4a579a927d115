"""Minimum cuts against all labellings tried one by one."""

from __future__ import annotations

from itertools import product

from hypothesis import given, settings
from hypothesis import strategies as st
from torch.fx import Graph, GraphModule, Node
from torch.nn import Module

from padst_fx.freezing.order import Order
from padst_fx.freezing.placement import Placement
from padst_fx.freezing.trace import Reading, Seam, Trace

TURN = Order.of([1, 2, 0])


def some_node() -> Node:
    return Graph().placeholder("x")


@st.composite
def problems(draw):
    """A few axes, some barred, with seams between them and readers of one order or none."""
    trace = Trace(GraphModule(Module(), Graph()))
    count = draw(st.integers(2, 5))
    axes = [trace.classes.new(3, draw(st.sampled_from([None, None, "barred"])))
            for _ in range(count)]  # fmt: skip
    cost = st.integers(1, 9).map(float)
    place = st.sampled_from(axes)
    for _ in range(draw(st.integers(1, 7))):
        trace.seams.append(Seam(some_node(), some_node(), 0, draw(place), draw(place), draw(cost)))
    for _ in range(draw(st.integers(1, 5))):
        order = draw(st.sampled_from([TURN, TURN, Order.identity(3)]))
        trace.readings.append(Reading(some_node(), draw(place), order, draw(cost)))
    return trace, axes


@settings(max_examples=150, deadline=None)
@given(problems())
def test_one_order_is_placed_at_least_cost(problem):
    trace, axes = problem
    found = Placement.best(trace, lambda reading, order: order.is_identity)
    costs = []
    for orders in product((Order.identity(3), TURN), repeat=len(axes)):
        if any(trace.classes.objection(a, o) for a, o in zip(axes, orders, strict=True)):
            continue
        other = Placement(trace, found.absorbs, dict(zip(axes, orders, strict=True)))
        costs.append(other.cost(trace.seams, trace.readings))
    assert found.cost(trace.seams, trace.readings) == min(costs)
    for axis in axes:
        assert trace.classes.objection(axis, found.order(axis)) is None
