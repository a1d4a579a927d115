"""Tensors stored as their non-zero entries."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from padst_fx.export.onnx.masked import Gaps, is_masked


def dense(gaps: Gaps) -> np.ndarray:
    """By the definition: one entry after the other."""
    flat = np.zeros(int(np.prod(gaps.shape)), gaps.values.dtype)
    place = -1
    for value, gap in zip(gaps.values, gaps.gaps, strict=True):
        place += int(gap)
        flat[place] = value
    return flat.reshape(gaps.shape)


@given(st.lists(st.integers(0, 1999), max_size=40, unique=True))
def test_entries_anywhere(places):
    array = np.zeros((4, 500), np.float32)
    array.reshape(-1)[places] = np.arange(1, len(places) + 1)
    gaps = Gaps.of(array)
    assert np.array_equal(dense(gaps), array)
    assert len(gaps.values) <= len(places) + 2000 // 255


@pytest.mark.parametrize("far", [254, 255, 256, 510, 511])
def test_gaps_that_8_bits_hold_and_do_not(far):
    array = np.zeros(2000, np.float32)
    array[[3, 3 + far]] = 1, 2
    assert np.array_equal(dense(Gaps.of(array)), array)


@pytest.mark.parametrize(("zeros", "expected"), [(0.9, True), (0.1, False)])
def test_only_what_gets_smaller(zeros, expected):
    generator = np.random.default_rng(0)
    array = generator.standard_normal((40, 100)).astype(np.float32)
    array[generator.random((40, 100)) < zeros] = 0
    assert is_masked(_initializer(array)) is expected
    assert not is_masked(_initializer(array[:10]))
    assert not is_masked(_initializer(array.reshape(-1)))
    assert not is_masked(_initializer(array.astype(np.int32)))


def _initializer(array: np.ndarray) -> ir.Value:
    return ir.Value(name="weight", const_value=ir.tensor(array))
