"""The assignment of features to positions against dense float64 maths and brute force."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from padst_fx.dst.assignment import Gain, Wanted, assign, capture, choose_features, settled


def problem(outputs=12, positions=6, tokens=4000, seed=0):
    """Correlated inputs, weights behind a mask, and the signal of a squared loss to a target."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    x = draw(tokens, positions) @ (torch.eye(positions) + 0.3 * draw(positions, positions))
    mask = draw(outputs, positions) > 0
    values = draw(outputs, positions) * mask
    target = draw(outputs, positions)
    error = x @ (values - target).t()
    halves = [error[first::2].t() @ x[first::2] for first in range(2)]
    return torch.cat((*halves, x.t() @ x)), mask, values, target


def certain(change, power=None):
    """What is wanted without any doubt."""
    outputs, positions = change.shape
    power = torch.ones(positions, dtype=change.dtype) if power is None else power
    return Wanted(change, power, change.new_zeros(outputs), torch.ones_like(power))


def test_what_is_wanted_is_the_least_squares_step():
    signal, _, values, target = problem()
    wanted = Wanted.of(signal, shrinkage=1e-12)
    torch.testing.assert_close(wanted.change, target - values)


def test_full_shrinkage_takes_features_for_uncorrelated():
    signal, _, _, _ = problem()
    wanted = Wanted.of(signal, shrinkage=1.0)
    gradient = signal[:12] + signal[12:24]
    torch.testing.assert_close(wanted.change, -gradient / signal[24:].diagonal())


def test_a_dead_feature_wants_nothing():
    signal, _, _, _ = problem()
    signal[:, 2] = signal[26] = 0
    wanted = Wanted.of(signal, shrinkage=0.1)
    assert torch.isfinite(wanted.change).all()
    assert (wanted.change[:, 2] == 0).all() and wanted.power[2] == wanted.spread[2] == 0
    assert torch.isfinite(wanted.noise).all()


def test_capture_is_the_energy_over_the_active_rows():
    signal, mask, _, _ = problem()
    wanted = Wanted.of(signal, 0.1)
    score = capture(wanted.change, wanted.power, mask)
    for j, c in itertools.product(range(6), range(6)):
        rows = mask[:, j]
        expected = (wanted.change[rows, c] ** 2).sum() * wanted.power[c]
        torch.testing.assert_close(score[j, c], expected)


def test_gain_is_the_capture_of_values_and_what_is_wanted_together():
    signal, mask, values, _ = problem()
    wanted = certain(*(lambda w: (w.change, w.power))(Wanted.of(signal, 0.1)))
    gain = Gain(wanted, values, mask)
    for trust in (0.0, 0.7, 3.0):
        expected = capture(wanted.change + trust * values, wanted.power, mask)
        torch.testing.assert_close(gain.score(trust), expected)


@given(st.integers(0, 10**6))
@settings(max_examples=25, deadline=None)
def test_assignment_is_the_best_of_all(seed):
    score = torch.rand(5, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    orders = itertools.permutations(range(5))
    best = max(float(score[torch.arange(5), torch.tensor(order)].sum()) for order in orders)
    chosen = assign(score)
    assert chosen.sort().values.tolist() == list(range(5))
    assert float(score[torch.arange(5), chosen].sum()) == pytest.approx(best)


def planted(seed):
    """The target's columns lie in another order than the values'."""
    generator = torch.Generator().manual_seed(seed)
    true = torch.randperm(8, generator=generator)
    columns = torch.randn(20, 8, generator=generator, dtype=torch.float64)
    mask = torch.rand(20, 8, generator=generator) < 0.3
    target = torch.zeros(20, 8, dtype=torch.float64)
    target[:, true] = columns * mask
    return target, mask, true


@pytest.mark.parametrize("seed", range(5))
def test_with_the_true_curvature_the_planted_order_is_found_and_kept(seed):
    target, mask, true = planted(seed)
    curvature = 0.01
    nothing = torch.zeros_like(target)
    gain = Gain(certain(curvature * target), nothing, mask)
    assert torch.equal(choose_features(gain, curvature, limit=8), true)
    gain = Gain(certain(nothing), target[:, true] * mask, mask)
    assert torch.equal(choose_features(gain, curvature, limit=8), torch.arange(8))


@pytest.mark.parametrize("limit", [0, 2, 3, 8])
def test_no_more_than_the_limit_move(limit):
    signal, mask, values, _ = problem(positions=8)
    gain = Gain(Wanted.of(signal, 0.1), values, mask)
    order = choose_features(gain, 1e-9, limit)
    assert order.sort().values.tolist() == list(range(8))
    assert int((order != torch.arange(8)).sum()) <= limit


def test_without_a_curvature_nothing_moves():
    target, mask, _ = planted(0)
    gain = Gain(certain(target), torch.zeros_like(target), mask)
    assert torch.equal(choose_features(gain, None, limit=8), torch.arange(8))


def test_chance_is_told_by_the_halves_of_a_batch():
    """Noise and features of known moments: what is wanted has the variance that is said."""
    generator = torch.Generator().manual_seed(0)
    mixed = torch.eye(6).double() + 0.5 * torch.randn(6, 6, generator=generator).double()
    deviation = torch.tensor([0.5, 1.0, 2.0]).double()
    seen, said = [], []
    for _ in range(400):
        x = torch.randn(128, 6, generator=generator).double() @ mixed
        noise = torch.randn(128, 3, generator=generator).double() * deviation
        halves = [noise[first::2].t() @ x[first::2] for first in range(2)]
        wanted = Wanted.of(torch.cat((*halves, x.t() @ x)), shrinkage=0.1)
        seen.append(wanted.change * wanted.power.sqrt())
        said.append(wanted.noise[:, None] * wanted.spread)
    variance = torch.stack(seen).var(0)
    torch.testing.assert_close(torch.stack(said).mean(0), variance, rtol=0.25, atol=0)


def test_noise_alone_moves_nothing():
    generator = torch.Generator().manual_seed(0)
    moved = 0
    for _ in range(20):
        x, noise = (torch.randn(256, n, generator=generator).double() for n in (32, 48))
        halves = [noise[first::2].t() @ x[first::2] for first in range(2)]
        wanted = Wanted.of(torch.cat((*halves, x.t() @ x)), shrinkage=0.1)
        mask = torch.rand(48, 32, generator=generator) < 0.2
        gain = Gain(wanted, torch.zeros(48, 32).double(), mask)
        moved += int((choose_features(gain, 1.0, limit=32) != torch.arange(32)).sum())
    assert moved <= 0.1 * 20 * 32


def test_nearly_as_many_move_as_may():
    """Twenty pairs that want to be exchanged, each up to another trust in what is there."""
    change, values = torch.zeros(80, 40).double(), torch.eye(80, 40).double()
    mask = torch.eye(80, 40, dtype=torch.bool)
    for pair in range(20):
        one, other = 2 * pair, 2 * pair + 1
        change[one, other] = change[other, one] = 10 ** (pair / 10 - 1)
    gain = Gain(certain(change), values, mask)
    # Five pairs want more than all together hold: the others may not move whatever the limit.
    for limit in (4, 6, 10):
        order = choose_features(gain, 1e-9, limit)
        moved = (order != torch.arange(40)).nonzero().squeeze(1).tolist()
        assert moved == list(range(40 - len(moved), 40))
        assert 0.6 * limit <= len(moved) <= limit


def test_columns_of_equal_masks_are_not_exchanged():
    signal, _, _, _ = problem(positions=8)
    mask = torch.zeros(12, 8, dtype=torch.bool)
    mask[:6, :4] = mask[6:, 4:] = True
    wanted = Wanted.of(signal, 0.1)
    order = choose_features(Gain(wanted, torch.zeros(12, 8).double(), mask), 1.0, limit=8)
    within = (order < 4) == (torch.arange(8) < 4)
    assert torch.equal(order[within], torch.arange(8)[within])


def test_features_that_nothing_decides_keep_their_order():
    score = torch.zeros(6, 6, dtype=torch.float64)
    score[0, 3] = 1.0
    assert assign(settled(score)).tolist() == [3, 0, 1, 2, 4, 5]
