"""Settings of soft permutations and what follows from them at a step."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from padst_fx import SoftPermutation
from padst_fx.dst.soft_schedule import SoftSchedule


def test_the_weight_rises_along_a_line_and_stays():
    soft = SoftPermutation(weight=2.0, warmup=0.5, harden_at=100)
    schedule = SoftSchedule(soft, delta_t=10, t_end=1000)
    assert schedule.weight(0) == pytest.approx(2 / 50)
    assert schedule.weight(24) == pytest.approx(1.0)
    assert schedule.weight(49) == schedule.weight(99) == schedule.weight(10**6) == 2.0


def test_without_warm_up_the_weight_is_constant():
    schedule = SoftSchedule(SoftPermutation(weight=3.0, warmup=0.0), delta_t=10, t_end=1000)
    assert schedule.weight(0) == schedule.weight(700) == 3.0


def test_steps_by_hand():
    soft = SoftPermutation(warmup=0.5, harden_at=100, events=2)
    schedule = SoftSchedule(soft, delta_t=10, t_end=1000)
    assert schedule.last_step == 100
    assert schedule.event_steps() == [80, 100]
    assert SoftSchedule(SoftPermutation(), delta_t=7, t_end=100).last_step == 56


def test_the_last_event_is_the_last_step_whatever_rounding_does():
    # 0.0002 + 1.9998 * 3 / 3 is below 2 in float64.
    schedule = SoftSchedule(SoftPermutation(warmup=0.0001, harden_at=2, events=3), 1, 1)
    assert schedule.event_steps()[-1] == 2


@given(
    warmup=st.floats(0, 1),
    harden_at=st.none() | st.integers(1, 5000),
    events=st.integers(1, 9),
    delta_t=st.integers(1, 300),
    t_end=st.integers(1, 5000),
)
def test_event_steps_are_few_update_steps_up_to_the_last(warmup, harden_at, events, delta_t, t_end):
    soft = SoftPermutation(warmup=warmup, harden_at=harden_at, events=events)
    schedule = SoftSchedule(soft, delta_t, t_end)
    steps = schedule.event_steps()
    assert 1 <= len(steps) <= events
    assert steps == sorted(set(steps))
    assert steps[-1] == schedule.last_step
    assert all(step % delta_t == 0 and step > 0 for step in steps)
    asked = harden_at or t_end // 2
    assert asked <= schedule.last_step < asked + delta_t or schedule.last_step == delta_t
    assert steps[0] + 1 >= math.floor(warmup * schedule.last_step)


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("weight", -1.0, "weight must be at least 0, got -1.0"),
        ("weight", math.nan, "weight must be at least 0, got nan"),
        ("warmup", 1.5, r"warmup must be in \[0, 1\], got 1.5"),
        ("harden_at", 0, "harden_at must be a positive number of steps or None, got 0"),
        ("harden_at", 1.5, "harden_at must be a positive number of steps or None, got 1.5"),
        ("threshold", -0.1, "threshold must be at least 0, got -0.1"),
        ("events", 0, "events must be a positive integer, got 0"),
        ("learning_rate", 0.0, "learning_rate must be positive or None, got 0.0"),
        ("sinkhorn_iterations", True, "sinkhorn_iterations must be a positive integer, got True"),
    ],
)
def test_values_out_of_range_are_refused(setting, value, message):
    with pytest.raises(ValueError, match=message):
        SoftPermutation(**{setting: value})
