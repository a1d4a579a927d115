"""Batches, gradients and layers that a training loop seldom sees."""

from __future__ import annotations

import copy
import itertools
import math

import pytest
import torch
from torch import nn

import padst_fx
from padst_fx import DST, NM, Block, Diag, SparseLinear, Unstructured

STRUCTURES = ["diag", Diag(width=4), Block(4), NM(1, 4), Unstructured()]
METHODS = ["set", "rigl", "rigl_exact", "mest", "dynadiag"]
CASES = [
    (structure, method, permutation)
    for structure, method, permutation in itertools.product(
        STRUCTURES, METHODS, ["random", "learned"]
    )
    if method != "dynadiag" or structure in STRUCTURES[:2]
]


def trio(structure="diag", method="rigl", permutation="random", delta_t=2):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 16), nn.Linear(16, 4))
    sparsity = None if isinstance(structure, NM) else 0.75
    padst_fx.sparsify(model, structure, sparsity, permutation=permutation)
    optimizer = torch.optim.SGD(model.parameters(), 1e-2, momentum=0.9)
    return model, optimizer, DST(model, optimizer, method, delta_t=delta_t, t_end=100)


def step(model, optimizer, dst, x):
    model(x).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    return dst.step()


def topology(model):
    return [t.clone() for m in model if isinstance(m, SparseLinear) for t in (m.index, m.perm)]


def unchanged(model, before):
    return all(torch.equal(a, b) for a, b in zip(topology(model), before, strict=True))


def assert_sound(model):
    for layer in (m for m in model.modules() if isinstance(m, SparseLinear)):
        assert layer.topology_fault(layer.index, layer.perm) is None
        assert layer.pattern.mask(layer.index).sum() == layer.pattern.nonzeros
        assert torch.isfinite(layer.values).all()


@pytest.mark.parametrize("shape", [(0, 16), (1, 16), (2, 0, 16), (16,)], ids=str)
@pytest.mark.parametrize(("structure", "method", "permutation"), CASES, ids=str)
def test_empty_batches_and_batches_of_one(structure, method, permutation, shape):
    model, optimizer, dst = trio(structure, method, permutation)
    results = [step(model, optimizer, dst, torch.randn(shape)) for _ in range(4)]
    assert not results[0] and not results[2]
    assert dst.steps == 4 and dst.put_off == 0
    assert dst.last_update.step == 4 and not dst.last_update.skipped
    assert_sound(model)


@pytest.mark.parametrize("poison", [math.nan, math.inf], ids=str)
@pytest.mark.parametrize(("structure", "method", "permutation"), CASES, ids=str)
def test_gradients_that_are_not_finite_put_updates_off_until_a_load(
    tmp_path, structure, method, permutation, poison
):
    model, optimizer, dst = trio(structure, method, permutation)
    step(model, optimizer, dst, torch.randn(4, 16))
    padst_fx.save_training(model, tmp_path / "t", optimizer, dst)
    before = topology(model)
    for _ in range(3):
        step(model, optimizer, dst, torch.randn(4, 16) * poison)
    assert dst.put_off == 3 and dst.last_update is None
    assert unchanged(model, before)
    padst_fx.load_training(model, tmp_path / "t", optimizer, dst)
    assert (dst.steps, dst.put_off) == (1, 0)
    assert step(model, optimizer, dst, torch.randn(4, 16))
    assert_sound(model)


@pytest.mark.parametrize("method", METHODS)
def test_a_layer_frozen_in_training_is_left_alone_until_it_is_thawed(method):
    model, optimizer, dst = trio("diag", method, "learned")
    step(model, optimizer, dst, torch.randn(4, 16))
    frozen = model[0]
    for parameter in frozen.parameters():
        parameter.requires_grad_(False)
    before = copy.deepcopy(frozen.state_dict())
    assert step(model, optimizer, dst, torch.randn(4, 16))
    assert dst.last_update.skipped == ("0",)
    assert [p.name for p in dst.last_update.permutations] == ["2"]
    kept = [name for name in before if name != "temperature"]
    assert all(torch.equal(frozen.state_dict()[name], before[name]) for name in kept)
    for parameter in frozen.parameters():
        parameter.requires_grad_(True)
    step(model, optimizer, dst, torch.randn(4, 16))
    assert step(model, optimizer, dst, torch.randn(4, 16))
    assert dst.last_update.skipped == ()


@pytest.mark.parametrize(("structure", "method", "permutation"), CASES, ids=str)
def test_a_layer_never_reached(structure, method, permutation):
    """It keeps its mask where a score of its own is needed; random growth needs none."""
    model, optimizer, dst = trio(structure, method, permutation)
    before = copy.deepcopy(model[0].state_dict())
    for _ in range(2):
        model[3](model[2](torch.randn(4, 32))).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        dst.step()
    assert dst.last_update.skipped == (() if method == "set" else ("0",))
    if method != "set":
        kept = [name for name in before if name != "temperature"]
        assert all(torch.equal(model[0].state_dict()[name], before[name]) for name in kept)
    assert_sound(model)


@pytest.mark.parametrize("structure", ["diag", Diag(width=4), Block(4), Unstructured()], ids=str)
@pytest.mark.parametrize("method", ["set", "rigl", "rigl_exact", "mest"])
def test_a_layer_used_twice_with_a_learned_permutation(structure, method):
    torch.manual_seed(0)
    model = nn.ModuleList([SparseLinear(16, 16, structure, 0.75, permutation="learned")])
    optimizer = torch.optim.SGD(model.parameters(), 1e-2)
    dst = DST(model, optimizer, method, delta_t=2, t_end=100)
    for number in range(1, 5):
        model[0](model[0](torch.randn(8, 16)).relu()).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        assert number % 2 == 0 or not dst.step()
        if number % 2 == 0:
            dst.step()
            assert dst.last_update.step == number and dst.last_update.skipped == ()
    assert_sound(model)


OTHERS = [Diag(), Diag(run=2), Diag(width=2), Block(2), Block(4), NM(1, 4), NM(2, 4, tile=2)]


PAIRS = list(itertools.permutations([*OTHERS, Unstructured()], 2))


@pytest.mark.parametrize("pair", PAIRS, ids=str)
def test_a_state_dict_of_another_structure_leaves_a_sound_model(pair):
    """Refused by its shapes, its dtype or its index; else what it holds is a topology here too."""
    theirs, ours = (
        SparseLinear(16, 16, s, None if isinstance(s, NM) else 0.75, permutation="random")
        for s in pair
    )
    values = ours.values.clone()
    try:
        ours.load_state_dict(theirs.state_dict())
    except (RuntimeError, ValueError) as error:
        assert "size mismatch" in str(error) or "cannot load" in str(error)
        assert torch.equal(ours.values, values)
    assert ours.topology_fault(ours.index, ours.perm) is None


def test_an_update_without_any_scores_is_told(caplog):
    model, optimizer, dst = trio("diag", "rigl", "identity")
    before = copy.deepcopy(model.state_dict())
    for _ in range(2):
        model[3](torch.randn(4, model[2].out_features)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        dst.step()
    assert dst.last_update.skipped == ("0", "2")
    assert "no layer's scores arrived" in caplog.text
    assert torch.equal(model[0].index, before["0.index"])
