"""The secant on quadratic losses."""

from __future__ import annotations

import pytest
import torch

from padst_fx.dst.curvature import Curvature


@pytest.mark.parametrize("trained", [1.0, 0.3])
def test_a_quadratic_is_measured_exactly_however_far_training_got(trained):
    best = torch.randn(30, dtype=torch.float64)
    steepness = 0.02
    values = trained * best
    curvature = Curvature()
    curvature.observe(steepness * best, steepness * (best - values), values)
    assert curvature.value == pytest.approx(steepness)


def test_nothing_is_known_without_moves_or_with_a_negative_slope():
    curvature = Curvature()
    assert curvature.value is None
    curvature.observe(torch.empty(0), torch.empty(0), torch.empty(0))
    assert curvature.value is None
    one = torch.ones(3)
    curvature.observe(-one, one, one)
    assert curvature.value is None


def test_older_observations_fade_by_half():
    curvature, one = Curvature(), torch.ones(2)
    curvature.observe(one, 0 * one, one)
    curvature.observe(3 * one, 0 * one, one)
    assert curvature.value == pytest.approx((0.5 * 2 + 6) / (0.5 * 2 + 2))


def test_state_comes_back():
    curvature, other = Curvature(), Curvature()
    curvature.observe(torch.ones(2), torch.zeros(2), torch.ones(2))
    other.load_state_dict(curvature.state_dict())
    assert other == curvature
