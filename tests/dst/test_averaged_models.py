"""Averaged models (EMA, SWA) against float64 means of dense weights under the live masks."""

from __future__ import annotations

import copy

import pytest
import torch
from small_models import STRUCTURES, layers, smooth_model
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn, get_ema_multi_avg_fn

import padst_fx
from padst_fx import DST, Block, SoftPermutation
from padst_fx.permutation import permute_columns


class StateDictAverage:
    """Averages what floats in a state dict and copies the rest, as timm's ModelEmaV3 does."""

    def __init__(self, model):
        self.module = copy.deepcopy(model)

    @torch.no_grad()
    def update_parameters(self, model):
        live = model.state_dict()
        for name, tensor in self.module.state_dict().items():
            if tensor.is_floating_point():
                tensor.lerp_(live[name], 1 - DECAY)
            else:
                tensor.copy_(live[name])


DECAY = 0.75
AVERAGES = {
    "ema": (lambda m: AveragedModel(m, multi_avg_fn=get_ema_multi_avg_fn(DECAY)), lambda _: DECAY),
    "ema, one by one": (lambda m: AveragedModel(m, avg_fn=get_ema_avg_fn(DECAY)), lambda _: DECAY),
    "state dicts": (StateDictAverage, lambda _: DECAY),
    "swa": (AveragedModel, lambda averaged: averaged / (averaged + 1)),
}


def trio(structure="diag", permutation="random", method="rigl", **options):
    model = smooth_model(structure, permutation)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-2)
    settings = {"delta_t": 2, "t_end": 40, "drop_fraction": 0.5, **options}
    return model, optimizer, DST(model, optimizer, method, **settings)


def step(model, optimizer, dst, number):
    generator = torch.Generator().manual_seed(number)
    x = torch.randn(8, 16, generator=generator, dtype=torch.float64)
    y = model(x)
    (y.square().mean() + y.sum() / 9 + dst.penalty()).backward()
    optimizer.step()
    optimizer.zero_grad()
    return dst.step()


def assert_same(a, b):
    torch.testing.assert_close(a.state_dict(), b.state_dict(), rtol=0, atol=0)


def mask(layer, perm):
    """The mask of the dense weight, its columns through the given permutation."""
    return permute_columns(layer.pattern.mask(layer.index), perm)


def assert_live_topology(averaged, model):
    for name, layer in layers(model).items():
        copy_ = averaged.module.get_submodule(name)
        assert torch.equal(copy_.index, layer.index) and torch.equal(copy_.perm, layer.perm)
        assert copy_.topology_fault(copy_.index, copy_.perm) is None


def worst_difference(model, optimizer, dst, averaged, keep, steps=20):
    """Between an average and the dense reference, over a training; asserts that much happened.

    Its rule: a dense mean of the dense weights; an update multiplies it by the mask after the
    exchange of units, and once more by the mask after the move of permutations.
    """
    mean, moved, grown, worst = {}, 0, 0, 0.0
    for number in range(steps):
        perms = {name: layer.perm.clone() for name, layer in layers(model).items()}
        if step(model, optimizer, dst, number):
            grown += dst.last_update.grown
        moved += sum(not torch.equal(perms[n], layer.perm) for n, layer in layers(model).items())
        averaged.update_parameters(model)
        if not number and isinstance(averaged, StateDictAverage):
            averaged.module.load_state_dict(model.state_dict())
        for name, layer in layers(model).items():
            weight = layer.dense_weight()
            before = mean.get(name, weight) * mask(layer, perms[name]) * mask(layer, layer.perm)
            mean[name] = weight if not number else torch.lerp(weight, before, keep(number))
            other = averaged.module.get_submodule(name).dense_weight()
            worst = max(worst, float((other - mean[name]).abs().max()))
        assert_live_topology(averaged, model)
    assert grown > 0
    return worst, moved


@pytest.mark.parametrize("average", AVERAGES)
@pytest.mark.parametrize("permutation", ["random", "learned"])
@pytest.mark.parametrize("structure", STRUCTURES, ids=str)
def test_an_average_is_the_mean_of_dense_weights_under_the_live_mask(
    structure, permutation, average
):
    model, optimizer, dst = trio(structure, permutation)
    make, keep = AVERAGES[average]
    averaged = make(model)
    dst.keep_aligned(averaged if isinstance(averaged, AveragedModel) else averaged.module)
    addresses = [t.data_ptr() for t in averaged.module.state_dict().values()]
    worst, moved = worst_difference(model, optimizer, dst, averaged, keep)
    assert worst < 1e-12
    assert (moved > 0) == (permutation == "learned")
    assert [t.data_ptr() for t in averaged.module.state_dict().values()] == addresses
    dense = padst_fx.densify(copy.deepcopy(averaged.module))
    x = torch.randn(3, 16, dtype=torch.float64)
    torch.testing.assert_close(averaged.module(x), dense(x))


def test_the_reference_sees_the_mixing_of_an_average_not_kept_aligned():
    model, optimizer, dst = trio()
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(DECAY))
    assert worst_difference(model, optimizer, dst, averaged, lambda _: DECAY)[0] > 1e-2


def test_scores_of_dynadiag_are_averaged_by_diagonal_and_start_where_the_models_do():
    model, optimizer, dst = trio(method="dynadiag")
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(DECAY))
    dst.keep_aligned(averaged)
    mean = {}
    for number in range(12):
        before = {n: set(m.index.tolist()) for n, m in layers(model).items()}
        changed = step(model, optimizer, dst, number)
        averaged.update_parameters(model)
        for name, layer in layers(model).items():
            alpha = layer.alpha.detach()
            expected = mean.get(name, alpha).clone()
            if changed:
                for diagonal in set(layer.index.tolist()) - before[name]:
                    expected[diagonal] = alpha[diagonal]
            mean[name] = DECAY * expected + (1 - DECAY) * alpha
            found = averaged.module.get_submodule(name).alpha
            torch.testing.assert_close(found.detach(), mean[name], rtol=1e-12, atol=1e-12)
    assert_live_topology(averaged, model)


def test_a_hardened_permutation_hardens_in_the_average():
    soft = SoftPermutation(warmup=0.5, harden_at=6, events=1)
    model, optimizer, dst = trio("diag", "soft", soft=soft)
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(DECAY))
    dst.keep_aligned(averaged)
    mean = {}
    for number in range(12):
        step(model, optimizer, dst, number)
        averaged.update_parameters(model)
        for name, layer in layers(model).items():
            other = averaged.module.get_submodule(name)
            assert (other.soft_perm is None) == (layer.soft_perm is None) == (number >= 5)
            found = other.pattern.dense(other.values.detach(), other.index)
            structured = layer.pattern.dense(layer.values.detach(), layer.index)
            before = mean.get(name, structured) * layer.pattern.mask(layer.index)
            mean[name] = DECAY * before + (1 - DECAY) * structured
            torch.testing.assert_close(found, mean[name], rtol=1e-12, atol=1e-12)
    assert_live_topology(averaged, model)
    names = [name for name, _ in model.named_parameters()]
    assert [name for name, _ in averaged.module.named_parameters()] == names


def test_a_copy_of_another_topology_is_aligned_at_once():
    model, optimizer, dst = trio(permutation="learned")
    averaged = AveragedModel(model)
    before = {name: layer.dense_weight() for name, layer in layers(model).items()}
    for number in range(8):
        step(model, optimizer, dst, number)
    dst.keep_aligned(averaged.module)
    assert_live_topology(averaged, model)
    for name, layer in layers(averaged.module).items():
        weight = layer.dense_weight()
        inside = mask(layer, layer.perm)
        assert torch.equal(weight[~inside], torch.zeros_like(weight[~inside]))
        assert ((weight == before[name]) | (weight == 0)).all()
        assert (weight[inside] != 0).any()


def test_callbacks_see_aligned_averages_also_after_an_error(monkeypatch):
    model, optimizer, dst = trio(permutation="learned")
    averaged = [AveragedModel(model), AveragedModel(model, avg_fn=get_ema_avg_fn(DECAY))]
    for average in averaged:
        dst.keep_aligned(average)

    def check(_=None):
        for average in averaged:
            assert_live_topology(average, model)

    dst.callback = check
    step(model, optimizer, dst, 0)
    step(model, optimizer, dst, 1)

    def fail(*_):
        raise RuntimeError("no assignment")

    monkeypatch.setattr("padst_fx.dst.learned_permutation.choose_features", fail)
    units = [layer.index.clone() for layer in layers(model).values()]
    step(model, optimizer, dst, 2)
    with pytest.raises(RuntimeError, match="no assignment"):
        step(model, optimizer, dst, 3)
    assert not all(
        torch.equal(a, b.index) for a, b in zip(units, layers(model).values(), strict=True)
    )
    check()


def test_copies_go_on_alike_and_a_closed_dst_lets_go():
    model, optimizer, dst = trio()
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(DECAY))
    dst.keep_aligned(averaged)
    everything = (model, optimizer, dst, averaged)
    others = copy.deepcopy(everything)
    for model, optimizer, dst, averaged in (everything, others):
        for number in range(6):
            step(model, optimizer, dst, number)
            averaged.update_parameters(model)
        assert_live_topology(averaged, model)
        assert_same(averaged, everything[3])
    dst.close()
    before = copy.deepcopy(averaged.state_dict())
    second = DST(model, optimizer, "set", delta_t=1, t_end=40)
    assert step(model, optimizer, second, 9)
    torch.testing.assert_close(averaged.state_dict(), before, rtol=0, atol=0)


def test_stopped_and_loaded_the_average_goes_on_bit_for_bit(tmp_path):
    def start():
        model, optimizer, dst = trio(permutation="learned")
        averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(DECAY))
        dst.keep_aligned(averaged)
        return model, optimizer, dst, averaged

    def train(model, optimizer, dst, averaged, steps):
        for number in steps:
            step(model, optimizer, dst, number)
            averaged.update_parameters(model)

    first = start()
    train(*first, range(5))
    padst_fx.save_training(*first[:1], tmp_path / "t", *first[1:3], parts={"ema": first[3]})
    train(*first, range(5, 12))
    second = start()
    padst_fx.load_training(*second[:1], tmp_path / "t", *second[1:3], parts={"ema": second[3]})
    train(*second, range(5, 12))
    for a, b in zip(first[::3], second[::3], strict=True):
        assert_same(a, b)


def test_what_is_no_average_of_the_model_is_refused_with_nothing_changed(monkeypatch):
    model, _, dst = trio()
    before = copy.deepcopy(model.state_dict())
    other = trio(Block(4))[0]
    cases = {
        r"AveragedModel averages its buffers .* make it with use_buffers=False": AveragedModel(
            model, use_buffers=True
        ),
        r"has no SparseLinear '0': give the averaged copy itself": nn.Linear(2, 2),
        r"0 of the averaged model is the trained layer itself": model,
        r"0: the averaged model has BlockPattern.* the trained one DiagPattern": other,
    }
    for message, averaged in cases.items():
        with pytest.raises(ValueError, match=message):
            dst.keep_aligned(averaged)
    monkeypatch.setattr("padst_fx.dst.averaged_models.is_sharded", lambda _: True)
    with pytest.raises(ValueError, match=r"0: averages of sharded models are not supported; "):
        dst.keep_aligned(AveragedModel(model))
    assert not dst.averaged.pairs
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


def test_an_average_made_before_the_scores_of_dynadiag_is_refused():
    model, optimizer, dst = trio()
    averaged = AveragedModel(model)
    dst.close()
    second = DST(model, optimizer, "dynadiag")
    with pytest.raises(ValueError, match=r"0: only one of .* copy the model after DST is made"):
        second.keep_aligned(averaged)
