"""Orders, classes of axes, views and reordered weights against their definitions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from padst_fx import NM, Block, Diag
from padst_fx.freezing import sparse_order
from padst_fx.freezing.axis_classes import AxisClasses
from padst_fx.freezing.layout import matched_dims
from padst_fx.freezing.order import Order

PERMUTATIONS = st.integers(0, 2**32 - 1).map(lambda s: np.random.default_rng(s).permutation(12))


@given(PERMUTATIONS, PERMUTATIONS)
def test_orders_compose_as_reading_does(p, q):
    x = np.random.default_rng(0).normal(size=12)
    one, other = Order.of(p), Order.of(torch.from_numpy(q))
    assert np.array_equal(x[one.then(other).positions], x[p][q])
    assert one.then(one.inverse).is_identity and one.inverse.then(one).is_identity
    assert Order.side_by_side((one, other)) == Order.of(np.concatenate((p, q + 12)))


def test_blocks_of_an_order():
    order = Order.of([5, 4, 3, 2, 0, 1, 6])
    assert order.keeps_together(2) and not order.keeps_in_place(2)
    assert Order.of([1, 0, 3, 2]).keeps_in_place(2)
    assert not Order.of([0, 2, 1, 3]).keeps_together(2)
    assert not Order.of([4, 0, 1, 2, 3]).keeps_together(2)
    with pytest.raises(ValueError, match="not a permutation of 3 positions"):
        Order.of([0, 0, 2])


def swap(size, *pair):
    positions = list(range(size))
    positions[pair[0]], positions[pair[1]] = pair[1], pair[0]
    return Order.of(positions)


def test_what_a_class_is_asked_outlives_unions_and_parts():
    classes = AxisClasses()
    whole, other = classes.new(8), classes.new(8)
    classes.keep_in_place(other, 2, "pairs")
    first, second = classes.divide(whole, [4, 4])
    classes.union(whole, other)
    assert classes.objection(first, swap(4, 0, 2)) == "pairs"
    assert classes.objection(first, swap(4, 0, 1)) is None
    classes.fix(other, "barred")
    assert classes.objection(second, swap(4, 0, 1)) == "barred"
    assert classes.objection(second, Order.identity(4)) is None


def test_a_class_divided_in_two_ways_is_barred():
    classes = AxisClasses()
    whole = classes.new(8)
    (first, _), (third, _) = classes.divide(whole, [4, 4]), classes.divide(whole, [2, 6])
    for axis in (first, third):
        assert "two different ways" in classes.objection(axis, swap(classes.terms(axis).size, 0, 1))


@pytest.mark.parametrize(
    "before, after, runs",
    [
        ((2, 3, 8), (2, 3, 2, 4), [([0], [0]), ([1], [1]), ([2], [2, 3])]),
        ((2, 3, 2, 4), (2, 3, 8), [([0], [0]), ([1], [1]), ([2, 3], [2])]),
        ((2, 3, 8), (6, 8), [([0, 1], [0]), ([2], [1])]),
        ((2, 1, 8), (2, 8, 1), [([0], [0]), ([2], [1])]),
        ((4, 6), (6, 4), [([0, 1], [0, 1])]),
    ],
)
def test_views(before, after, runs):
    assert matched_dims(before, after) == runs


PATTERNS = [
    structure.bind(out, into, 0.5)
    for structure in (Diag(width=4), Block(4), NM(1, 2), NM(2, 4, tile=2))
    for out, into in ((16, 24), (24, 16), (16, 16))
]


def blockwise(size, block, seed=0):
    """A random order of whole blocks, each shuffled within."""
    random = np.random.default_rng(seed)
    blocks = random.permutation(np.arange(size).reshape(-1, block))
    return Order.of(random.permuted(blocks, axis=1).reshape(-1))


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_weights_in_another_order(pattern):
    """Against the dense matrix: rows picked, and columns moved, as the orders say."""
    torch.manual_seed(0)
    index = pattern.index_from_units(pattern.random_units())
    values = torch.randn(pattern.values_shape, dtype=torch.float64)
    matrix, x = pattern.dense(values, index), torch.randn(3, pattern.in_features).double()
    window = getattr(pattern, "m", pattern.in_features)

    def product(of_values, of_index):
        none = torch.empty(0, dtype=torch.int32), of_values.new_empty(0)
        return pattern.linear(x, of_values, of_index, *none)

    columns = blockwise(pattern.in_features, getattr(pattern, "m", 4))
    assert sparse_order.can_absorb(pattern.kernel, values, window, columns)
    found = product(*sparse_order.with_inputs(pattern.kernel, values, index, window, columns))
    torch.testing.assert_close(found, x[:, columns.positions.copy()] @ matrix.t())

    block = sparse_order.output_block(pattern.kernel, values)
    rows = blockwise(pattern.out_features, block)
    found = product(*sparse_order.with_outputs(pattern.kernel, values, index, rows))
    torch.testing.assert_close(found, x @ matrix[rows.tensor()].t())


def test_a_single_diagonal_absorbs_nothing():
    values = torch.randn(2, 8)
    assert sparse_order.output_block("shift", values) is None
    assert not sparse_order.can_absorb("shift", values, 0, blockwise(8, 4))
