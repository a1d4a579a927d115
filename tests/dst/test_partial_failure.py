"""What is left when scoring, choosing, assignment, a callback or the disk fails in an update."""

from __future__ import annotations

import copy
from pkgutil import resolve_name as resolve

import pytest
import torch
from torch import nn

import padst_fx
from padst_fx import DST, Block, SoftPermutation, SparseLinear


class Fault(Exception):
    """What a test raises."""


def failing(function, at):
    """The function, which raises at the given call."""
    calls = []

    def call(*arguments, **keywords):
        calls.append(None)
        if len(calls) == at:
            raise Fault
        return function(*arguments, **keywords)

    return call


def trio(permutation="learned", **options):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 16), nn.Linear(16, 4))
    padst_fx.sparsify(model, Block(4), 0.75, permutation=permutation)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    dst = DST(model, optimizer, "rigl", delta_t=2, t_end=100, drop_fraction=0.5, **options)
    return model, optimizer, dst


def step(model, optimizer, dst, number):
    generator = torch.Generator().manual_seed(number)
    loss = model(torch.randn(8, 16, generator=generator)).square().mean() + dst.penalty()
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return dst.step()


def everything(model, optimizer):
    return copy.deepcopy((model.state_dict(), optimizer.state_dict()["state"]))


def assert_same(a, b):
    torch.testing.assert_close(a, b, rtol=0, atol=0)


def assert_sound(model, optimizer):
    for layer in (m for m in model.modules() if isinstance(m, SparseLinear)):
        assert layer.topology_fault(layer.index, layer.perm) is None
        assert layer.pattern.mask(layer.index).sum() == layer.pattern.nonzeros
        assert optimizer.state[layer.values]["exp_avg"].shape == layer.values.shape


PLACES = [
    "padst_fx.dst.layer_state.LayerState.magnitudes",
    "padst_fx.dst.manager.choose_units",
    "padst_fx.dst.learned_permutation.Wanted.of",
]


@pytest.mark.parametrize("place", PLACES)
def test_failed_scoring_changes_nothing_and_the_update_comes_one_step_later(monkeypatch, place):
    model, optimizer, dst = trio()
    step(model, optimizer, dst, 1)
    monkeypatch.setattr(place, failing(resolve(place), at=2))
    loss = model(torch.randn(8, 16)).square().mean()
    loss.backward()
    optimizer.step()
    before = everything(model, optimizer)
    with pytest.raises(Fault):
        dst.step()
    assert_same(everything(model, optimizer), before)
    assert dst.steps == 2 and dst.last_update is None
    assert all(state.growth is None for state in dst.states)
    assert step(model, optimizer, dst, 3)
    assert dst.last_update.step == 3 and not dst.last_update.skipped
    assert step(model, optimizer, dst, 4) and dst.last_update.step == 4
    assert_sound(model, optimizer)


@pytest.mark.parametrize("at", [1, 2])
def test_a_failed_assignment_leaves_each_layer_before_or_after_its_move(monkeypatch, at):
    model, optimizer, dst = trio()
    step(model, optimizer, dst, 1)
    with monkeypatch.context() as patch:
        choose = resolve("padst_fx.dst.learned_permutation.choose_features")
        patch.setattr("padst_fx.dst.learned_permutation.choose_features", failing(choose, at))
        with pytest.raises(Fault):
            step(model, optimizer, dst, 2)
    assert_sound(model, optimizer)
    assert not any(state.layer.scoring for state in dst.states)
    assert [step(model, optimizer, dst, number) for number in (3, 4)] == [False, True]
    assert_sound(model, optimizer)


def test_a_failed_hardening_hardens_no_layer(monkeypatch):
    soft = SoftPermutation(warmup=0.5, harden_at=4)
    model, optimizer, dst = trio("soft", soft=soft)
    for number in range(1, 4):
        step(model, optimizer, dst, number)
    layers = [m for m in model.modules() if isinstance(m, SparseLinear)]
    with monkeypatch.context() as patch:
        nearest = resolve("padst_fx.dst.hardening.nearest_permutation")
        patch.setattr("padst_fx.dst.hardening.nearest_permutation", failing(nearest, 2))
        with pytest.raises(Fault):
            step(model, optimizer, dst, 4)
    assert len(layers) == 2 and all(layer.soft_perm is not None for layer in layers)
    assert step(model, optimizer, dst, 5) and step(model, optimizer, dst, 6)
    assert all(layer.soft_perm is None for layer in layers)
    assert_sound(model, optimizer)


def test_a_callback_that_raises_comes_after_the_update():
    def callback(_):
        raise Fault

    model, optimizer, dst = trio(callback=callback)
    step(model, optimizer, dst, 1)
    with pytest.raises(Fault):
        step(model, optimizer, dst, 2)
    assert dst.last_update.step == 2 and dst.last_update.grown > 0
    assert_sound(model, optimizer)
    dst.callback = None
    assert [step(model, optimizer, dst, number) for number in (3, 4)] == [False, True]


def test_a_refused_optimizer_does_not_count_the_step():
    model, _, dst = trio()
    dst.close()
    optimizer = torch.optim.Adafactor(model.parameters(), 1e-2)
    dst = DST(model, optimizer, "set", delta_t=1, t_end=10)
    for _ in range(2):
        with pytest.raises(ValueError, match="Adafactor keeps"):
            step(model, optimizer, dst, 1)
        assert dst.steps == 0
