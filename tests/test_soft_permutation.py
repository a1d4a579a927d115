"""Soft permutations as maths: penalty, projection and assignment against slow references."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from padst_fx.soft_permutation import (
    near_identity_,
    nearest_permutation,
    permutation_penalty,
    project_,
)


def matrix_of(perm) -> Tensor:
    """Row `j` reads feature `perm[j]`."""
    return torch.eye(len(perm), dtype=torch.float64)[torch.as_tensor(perm).long()]


def by_hand(matrix: Tensor) -> float:
    """The penalty, line by line."""
    lines = [*matrix.tolist(), *matrix.t().tolist()]
    return sum(sum(map(abs, line)) - math.hypot(*line) for line in lines)


@st.composite
def matrices(draw, low=-2.0, high=2.0):
    size = draw(st.integers(1, 7))
    entry = st.one_of(st.sampled_from([0.0, 0.5, 1.0, 1e-30]), st.floats(low, high, width=32))
    rows = st.lists(entry, min_size=size, max_size=size)
    return torch.tensor(draw(st.lists(rows, min_size=size, max_size=size)), dtype=torch.float64)


@settings(max_examples=60, deadline=None)
@given(matrices())
def test_the_penalty_is_the_sum_over_lines(matrix):
    assert permutation_penalty(matrix).item() == pytest.approx(by_hand(matrix), abs=1e-9)


@settings(max_examples=40, deadline=None)
@given(st.permutations(range(6)), st.permutations(range(6)), st.floats(0.01, 0.99))
def test_the_penalty_is_zero_on_permutations_only(first, second, share):
    one, other = matrix_of(first), matrix_of(second)
    assert permutation_penalty(one).item() == 0
    if first != second:
        assert permutation_penalty(share * one + (1 - share) * other).item() > 1e-3


def test_the_penalty_of_the_uniform_matrix():
    uniform = torch.full((4, 4), 0.25, dtype=torch.float64)
    assert permutation_penalty(uniform).item() == pytest.approx(2 * 4 * (1 - 1 / 2))


def test_the_gradient_of_the_penalty():
    torch.manual_seed(0)
    matrix = torch.rand(5, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(permutation_penalty, matrix)
    zero = torch.zeros(3, 3, requires_grad=True)
    permutation_penalty(zero).backward()
    assert torch.isfinite(zero.grad).all()


def test_the_penalty_of_a_narrow_dtype_adds_up_in_float32():
    matrix = torch.full((512, 512), 1 / 512, dtype=torch.bfloat16)
    assert permutation_penalty(matrix).dtype == torch.float32
    assert permutation_penalty(matrix).item() == pytest.approx(by_hand(matrix.double()), rel=1e-5)


def sinkhorn(matrix: Tensor, iterations: int) -> Tensor:
    """Normalise rows and columns in turn, as the definition says."""
    matrix = matrix.clamp(min=1e-12)
    for _ in range(iterations):
        matrix = matrix / matrix.sum(1, keepdim=True)
        matrix = matrix / matrix.sum(0, keepdim=True)
    return matrix


@settings(max_examples=60, deadline=None)
@given(matrices(), st.integers(1, 5))
def test_the_projection_is_a_clamp_and_sinkhorns_iterations(matrix, iterations):
    expected = sinkhorn(matrix, iterations)
    address = matrix.data_ptr()
    assert project_(matrix, iterations) is matrix
    assert matrix.data_ptr() == address
    torch.testing.assert_close(matrix, expected, rtol=1e-9, atol=1e-12)
    ones = torch.ones(len(matrix), dtype=torch.float64)
    torch.testing.assert_close(matrix.sum(0), ones)


def test_many_iterations_give_a_doubly_stochastic_matrix():
    torch.manual_seed(0)
    matrix = torch.rand(20, 20, dtype=torch.float64) + 0.1
    project_(matrix, 100)
    ones = torch.ones(20, dtype=torch.float64)
    torch.testing.assert_close(matrix.sum(0), ones)
    torch.testing.assert_close(matrix.sum(1), ones)
    assert (matrix >= 0).all()


def test_permutations_stay_as_they_are():
    matrix = matrix_of([2, 0, 1])
    torch.testing.assert_close(project_(matrix.clone(), 3), matrix)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_a_row_that_lost_everything_starts_over(dtype):
    matrix = torch.eye(8, dtype=dtype)
    matrix[3, 3] = -1
    project_(matrix, 3)
    assert torch.isfinite(matrix).all()
    torch.testing.assert_close(matrix[3].float(), matrix[3, 0].float().expand(8), atol=1, rtol=0)
    assert matrix[3].float().sum() > 0.05
    assert (matrix.float().sum(0) - 1).abs().max() < 0.02


def test_the_start_is_doubly_stochastic_and_nearest_to_the_identity():
    matrix = near_identity_(torch.empty(9, 9, dtype=torch.float64))
    for dim in (0, 1):
        torch.testing.assert_close(matrix.sum(dim), torch.ones(9, dtype=torch.float64))
    assert nearest_permutation(matrix).tolist() == list(range(9))
    assert 0 < permutation_penalty(matrix).item() / 18 < 0.2


@settings(max_examples=80, deadline=None)
@given(matrices())
def test_the_nearest_permutation_is_the_best_of_all(matrix):
    if len(matrix) > 5:
        matrix = matrix[:5, :5]
    perm = nearest_permutation(matrix)
    assert perm.dtype == torch.int32
    assert sorted(perm.tolist()) == list(range(len(matrix)))
    scores = [
        sum(matrix[row, column].item() for row, column in enumerate(order))
        for order in itertools.permutations(range(len(matrix)))
    ]
    found = sum(matrix[row, column].item() for row, column in enumerate(perm.tolist()))
    assert found == pytest.approx(max(scores), abs=1e-9)


ADVERSARIAL = {
    "zero": torch.zeros(50, 50),
    "uniform": torch.full((50, 50), 1 / 50),
    "uniform but for rounding": torch.full((50, 50), 1 / 50) + 1e-9 * torch.eye(50).flip(0),
    "one wanted column": torch.eye(50)[torch.zeros(50, dtype=torch.long)],
    "pairs that want the same": torch.eye(50)[torch.arange(50) // 2],
    "huge": torch.full((50, 50), 1e38),
    "negative": -torch.rand(50, 50),
}


@pytest.mark.parametrize("name", ADVERSARIAL)
def test_a_permutation_whatever_the_matrix(name):
    perm = nearest_permutation(ADVERSARIAL[name])
    assert torch.equal(perm.sort().values, torch.arange(50, dtype=torch.int32))


def test_where_the_largest_entries_of_rows_repeat_a_column():
    matrix = torch.tensor([[0.6, 0.3, 0.1], [0.5, 0.1, 0.4], [0.1, 0.4, 0.5]])
    assert matrix.argmax(1).tolist() == [0, 0, 2]
    assert nearest_permutation(matrix).tolist() == [0, 2, 1]  # 0.6 + 0.4 + 0.4


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_entries_that_are_not_finite_are_refused(value):
    matrix = torch.eye(3)
    matrix[1, 2] = value
    with pytest.raises(ValueError, match="not finite"):
        nearest_permutation(matrix)
