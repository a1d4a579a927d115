"""Soft permutations through a training: projected, hardened, stopped and gone on with."""

from __future__ import annotations

import copy
import gc
import logging
import math
import weakref

import model_zoo
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch._dynamo.utils import counters
from torch.nn.parallel import DistributedDataParallel

import padst_fx
from padst_fx import DST, NM, Block, SoftPermutation, SparseLinear, Unstructured
from padst_fx.soft_permutation import permutation_penalty

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, 1e-2, momentum=0.9),
    "adam": lambda p: torch.optim.Adam(p, 1e-2, amsgrad=True),
    "adamw foreach": lambda p: torch.optim.AdamW(p, 1e-2, foreach=True),
    "adamw fused": lambda p: torch.optim.AdamW(p, 1e-2, fused=True),
}
METHODS = [
    ("diag", "set"), ("diag", "rigl"), ("diag", "mest"), ("diag", "dynadiag"),
    (Block(4), "rigl"), (NM(2, 4), "rigl"), (Unstructured(), "rigl"),
]  # fmt: skip
SOFT = SoftPermutation(harden_at=6, threshold=0.0)


def dense_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 16), nn.Linear(16, 4))


def soft_model(structure="diag") -> nn.Module:
    sparsity = 0.5 if isinstance(structure, NM) else 0.75
    return padst_fx.sparsify(dense_model(), structure, sparsity, permutation="soft")


def trainer(structure="diag", method="rigl", optimizer="adam", soft=SOFT, **settings):
    model = soft_model(structure)
    chosen = OPTIMIZERS[optimizer](model.parameters())
    return model, chosen, DST(model, chosen, method, delta_t=2, t_end=40, soft=soft, **settings)


def loss_of(model, dst, step):
    generator = torch.Generator().manual_seed(step)
    x, y = torch.randn(8, 16, generator=generator), torch.randn(8, 4, generator=generator)
    return nn.functional.mse_loss(model(x), y) + dst.penalty()


def train(model, optimizer, dst, steps):
    changed = []
    for step in steps:
        loss_of(model, dst, step).backward()
        optimizer.step()
        optimizer.zero_grad()
        changed.append(dst.step())
    return changed


def layers_of(model) -> list[SparseLinear]:
    return [m for m in model.modules() if isinstance(m, SparseLinear)]


def is_hard(model) -> bool:
    return all(layer.soft_perm is None for layer in layers_of(model))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(("structure", "method"), METHODS, ids=str)
def test_matrices_stay_doubly_stochastic_and_become_permutations(structure, method, optimizer):
    model, chosen, dst = trainer(structure, method, optimizer)
    start = [layer.soft_perm.clone() for layer in layers_of(model)]
    for step in range(1, 6):
        train(model, chosen, dst, [step])
        for layer in layers_of(model):
            matrix = layer.soft_perm.detach()
            assert (matrix >= 0).all()
            assert (matrix.sum(0) - 1).abs().max() < 1e-5
            assert (matrix.sum(1) - 1).abs().max() < 0.2
    for layer, first in zip(layers_of(model), start, strict=True):
        assert not torch.equal(layer.soft_perm, first)
    assert train(model, chosen, dst, [6]) == [True]
    assert is_hard(model)
    for layer in layers_of(model):
        assert torch.equal(layer.perm.sort().values, torch.arange(layer.in_features).int())
    assert dst.last_update.soft.hardened == ("0", "2")
    assert train(model, chosen, dst, range(7, 13))[-1]
    assert dst.last_update.soft is None
    assert dst.penalty().item() == 0


def test_a_hardened_layer_goes_on_with_the_nearest_permutation_and_its_values():
    model, optimizer, dst = trainer(method="set", drop_fraction=1e-9)
    train(model, optimizer, dst, range(1, 6))
    layer = model[2]
    loss_of(model, dst, 6).backward()
    optimizer.step()
    matrix, values = layer.soft_perm.detach().clone(), layer.values.detach().clone()
    slots = copy.deepcopy(optimizer.state[layer.values])
    assert dst.step()
    kept = matrix[torch.arange(32), layer.perm.long()].sum()
    assert kept >= matrix.diagonal().sum()
    assert torch.equal(layer.values, values)
    for key, slot in optimizer.state[layer.values].items():
        assert torch.equal(slot, slots[key])


def test_the_penalty_is_the_weighted_sum_per_row_and_column():
    model, _, dst = trainer(soft=SoftPermutation(weight=2.0, warmup=0.5, harden_at=8))
    each = [permutation_penalty(m.soft_perm) / (2 * m.in_features) for m in layers_of(model)]
    torch.testing.assert_close(dst.penalty(), 2.0 * (1 / 4) * (each[0] + each[1]))
    dst.steps = 4
    torch.testing.assert_close(dst.penalty(), 2.0 * (each[0] + each[1]))
    dst.penalty().backward()
    assert all(layer.soft_perm.grad is not None for layer in layers_of(model))


def test_without_soft_permutations_nothing_is_added():
    model = padst_fx.sparsify(dense_model(), "diag", 0.75, permutation="random")
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with pytest.raises(ValueError, match="settings for soft permutations, but no layer has one"):
        DST(model, optimizer, soft=SoftPermutation())
    dst = DST(model, optimizer)
    assert dst.penalty().item() == 0
    assert not dst.penalty().requires_grad
    assert len(optimizer.param_groups) == 1


class TestWhenLayersHarden:
    def start(self, **settings):
        model, optimizer, dst = trainer(soft=SoftPermutation(**settings))
        seen = []
        dst.callback = seen.append
        return model, optimizer, dst, seen

    def test_those_under_the_threshold_after_the_warm_up_the_rest_at_the_last_step(self):
        model, optimizer, dst, seen = self.start(
            weight=0.0, warmup=0.5, harden_at=12, threshold=0.05, events=3
        )
        train(model, optimizer, dst, range(1, 8))
        with torch.no_grad():
            model[2].soft_perm.copy_(torch.eye(32).roll(1, 0))
            model[0].soft_perm.fill_(1 / 16)
        train(model, optimizer, dst, range(8, 15))
        hardened = {update.step: update.soft.hardened for update in seen if update.soft}
        assert hardened == {2: (), 4: (), 6: (), 8: ("2",), 10: (), 12: ("0",)}
        assert [u.soft.events for u in seen if u.soft] == [0, 0, 0, 1, 1, 2]
        assert [u.soft.recompilations for u in seen if u.soft] == [0, 0, 0, 2, 2, 4]
        assert (model[2].perm.long() == torch.arange(32).roll(1)).float().mean() > 0.9
        assert set(seen[2].soft.penalties) == {"0", "2"}
        assert set(seen[4].soft.penalties) == set(seen[4].soft.distances) == {"0"}
        assert seen[0].soft.distances["2"] < 0.3 and seen[3].soft.distances["2"] > 0.9
        assert seen[3].soft.distances["0"] == pytest.approx(15 / 16, abs=0.05)

    def test_the_number_of_events_is_bounded(self):
        model, optimizer, dst, seen = self.start(
            warmup=0.0, weight=3.0, harden_at=20, threshold=1.0, events=2
        )
        train(model, optimizer, dst, range(1, 25))
        assert is_hard(model)
        assert max(update.soft.events for update in seen if update.soft) <= 2

    def test_after_the_last_update_of_units_too(self):
        model, optimizer, dst, seen = self.start(harden_at=44, threshold=0.0)
        changed = train(model, optimizer, dst, range(1, 46))
        assert changed[43] and not any(changed[40:43])
        assert is_hard(model)
        assert seen[-1].step == 44
        assert seen[-1].layers == ()
        assert seen[-1].soft.hardened == ("0", "2")
        # No scoring step follows, so only the plain graph is compiled anew.
        assert seen[-1].soft.recompilations == 1

    @pytest.mark.parametrize("value", [math.nan, math.inf])
    def test_matrices_that_are_not_finite_are_put_off_named_and_counted(self, value, caplog):
        model, optimizer, dst = trainer(method="set", optimizer="sgd")
        train(model, optimizer, dst, range(1, 6))
        good = model[2].soft_perm.detach().clone()
        with caplog.at_level(logging.WARNING), torch.no_grad():
            model[2].soft_perm.fill_(value)
            optimizer.zero_grad()
            optimizer.step()
            dst.step()
            assert dst.last_update.soft.hardened == ()
            assert dst.last_update.soft.put_off == 1
            assert "soft permutation of 2 is not finite" in caplog.text
            assert not any(layer.soft_perm is None for layer in layers_of(model))
            assert torch.equal(model[2].perm, torch.arange(32).int())
            model[2].soft_perm.copy_(good)
        train(model, optimizer, dst, [7, 8])
        assert is_hard(model)
        assert dst.last_update.soft.events == 1


class TestInTheOptimizer:
    def test_a_group_of_its_own_without_decay(self):
        soft = SoftPermutation(learning_rate=0.5)
        model, optimizer, _ = trainer("diag", "dynadiag", "adamw foreach", soft)
        matrices = [layer.soft_perm for layer in layers_of(model)]
        alphas = [layer.alpha for layer in layers_of(model)]
        assert len(optimizer.param_groups) == 3
        assert [id(p) for p in optimizer.param_groups[1]["params"]] == [id(a) for a in alphas]
        last = optimizer.param_groups[2]
        assert [id(p) for p in last["params"]] == [id(m) for m in matrices]
        assert (last["weight_decay"], last["lr"]) == (0.0, 0.5)
        every = [id(p) for group in optimizer.param_groups for p in group["params"]]
        assert sorted(every) == sorted(id(p) for p in model.parameters())

    def test_an_optimizer_of_trainable_parameters_gets_them_too(self):
        model = soft_model()
        named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(named, 1e-2)
        DST(model, optimizer)
        assert optimizer.param_groups[-1]["param_names"] == ["0.soft_perm", "2.soft_perm"]

    @pytest.mark.parametrize("optimizer", OPTIMIZERS)
    def test_hardening_gives_the_memory_back(self, optimizer):
        model, chosen, dst = trainer(optimizer=optimizer)
        train(model, chosen, dst, range(1, 6))
        matrices = [layer.soft_perm for layer in layers_of(model)]
        slots = [slot for matrix in matrices for slot in chosen.state[matrix].values()]
        gone = [weakref.ref(tensor) for tensor in (*matrices, *slots) if tensor is not None]
        del matrices, slots
        train(model, chosen, dst, [6])
        gc.collect()
        assert len(gone) > 2
        assert all(reference() is None for reference in gone)
        assert chosen.param_groups[-1]["params"] == []
        train(model, chosen, dst, [7, 8])

    def test_learning_rate_schedulers_go_on(self):
        model, optimizer, dst = trainer()
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20)
        for step in range(1, 11):
            train(model, optimizer, dst, [step])
            scheduler.step()
        assert is_hard(model)
        assert optimizer.param_groups[0]["lr"] == pytest.approx(0.005)

    @pytest.mark.parametrize("fused", [False, True])
    def test_a_step_that_the_scaler_skips_changes_no_matrix(self, fused):
        model = soft_model()
        optimizer = torch.optim.AdamW(model.parameters(), 1e-2, fused=fused)
        dst = DST(model, optimizer, "set", delta_t=2, t_end=40, soft=SOFT)
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
        for step, factor in enumerate((1.0, math.inf, 1.0)):
            before = [layer.soft_perm.clone() for layer in layers_of(model)]
            scaler.scale(loss_of(model, dst, step) * factor).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            dst.step()
            after = [layer.soft_perm for layer in layers_of(model)]
            same = [torch.equal(a, b) for a, b in zip(before, after, strict=True)]
            assert all(same) if factor == math.inf else not any(same)
        assert dst.steps == 2


def assert_same(first, second):
    a, b = first.state_dict(), second.state_dict()
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("stop", [3, 5, 6, 9])
@pytest.mark.parametrize("method", ["rigl", "dynadiag"])
def test_going_on_from_files_is_bit_identical(tmp_path, method, stop):
    model, optimizer, dst = trainer(method=method)
    train(model, optimizer, dst, range(1, stop + 1))
    padst_fx.save(model, tmp_path / "model")
    torch.save((optimizer.state_dict(), dst.state_dict()), tmp_path / "rest")
    train(model, optimizer, dst, range(stop + 1, 13))
    resumed = padst_fx.load(dense_model, tmp_path / "model")
    other = OPTIMIZERS["adam"](resumed.parameters())
    other_dst = DST(resumed, other, method, delta_t=2, t_end=40, soft=SOFT)
    states = torch.load(tmp_path / "rest", weights_only=False)
    other.load_state_dict(states[0])
    other_dst.load_state_dict(states[1])
    train(resumed, other, other_dst, range(stop + 1, 13))
    assert_same(model, resumed)
    assert other_dst.hardening.events == dst.hardening.events == 1
    assert other_dst.hardening.recompilations == dst.hardening.recompilations == 2


@pytest.mark.parametrize("optimizer_last", [True, False])
def test_going_back_to_a_soft_state_and_on_to_a_hard_one(optimizer_last):
    def load(trio, states):
        pairs = list(zip(trio, states, strict=True))
        for part, state in pairs if optimizer_last else [pairs[0], pairs[2], pairs[1]]:
            part.load_state_dict(state)

    model, optimizer, dst = trainer()
    train(model, optimizer, dst, range(1, 5))
    soft = copy.deepcopy([part.state_dict() for part in (model, dst, optimizer)])
    train(model, optimizer, dst, range(5, 9))
    hard = copy.deepcopy([part.state_dict() for part in (model, dst, optimizer)])
    expected = copy.deepcopy(model)
    with pytest.raises(ValueError, match=r"other permutations are soft.*'0', '2'.*model's state"):
        dst.load_state_dict(soft[1])
    load((model, dst, optimizer), soft)
    train(model, optimizer, dst, range(5, 9))
    assert_same(model, expected)
    fresh, fresh_optimizer, fresh_dst = trainer()
    load((fresh, fresh_dst, fresh_optimizer), hard)
    for trio in ((model, optimizer, dst), (fresh, fresh_optimizer, fresh_dst)):
        train(*trio, range(9, 12))
    assert_same(model, fresh)


def test_a_copied_trio_goes_on_alike():
    trio = trainer()
    train(*trio, range(1, 4))
    others = copy.deepcopy(trio)
    assert train(*trio, range(4, 9)) == train(*others, range(4, 9))
    assert is_hard(others[0])
    assert_same(trio[0], others[0])


def test_closing_leaves_the_matrices_as_they_are():
    model, optimizer, dst = trainer()
    train(model, optimizer, dst, range(1, 3))
    dst.close()
    before = [layer.soft_perm.clone() for layer in layers_of(model)]
    x = torch.randn(4, 16)
    model(x).sum().backward()
    optimizer.step()
    after = [layer.soft_perm for layer in layers_of(model)]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    second = DST(model, optimizer, delta_t=2, t_end=40, soft=SOFT)
    train(model, optimizer, second, range(1, 7))
    assert is_hard(model)


@pytest.mark.parametrize("method", ["set", "rigl"])
def test_each_event_costs_one_recompilation_of_each_graph(method):
    torch._dynamo.reset()
    counters.clear()
    entry = model_zoo.get("mixer")
    model = padst_fx.sparsify(entry.build().train(), "diag", 0.9, permutation="soft")
    compiled = torch.compile(
        model, backend="padst", fullgraph=True, options={"inner": "aot_eager"}
    )
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    soft = SoftPermutation(
        weight=0.0, warmup=0.5, harden_at=20, threshold=0.05, events=2, learning_rate=1e-4
    )
    dst = DST(model, optimizer, method, delta_t=5, t_end=10_000, soft=soft)
    kept = {n: t.data_ptr() for n, t in model.state_dict().items() if "soft_perm" not in n}
    events, graphs = [], []
    inputs = entry.inputs()
    for step in range(1, 41):
        if step == 13:
            with torch.no_grad():
                first = layers_of(model)[0].soft_perm
                first.copy_(torch.eye(len(first)).flip(0))
        (entry.loss(compiled(*inputs)) + dst.penalty()).backward()
        optimizer.step()
        optimizer.zero_grad()
        dst.step()
        events.append(dst.hardening.events)
        graphs.append(counters["stats"]["unique_graphs"])
    variants = 1 if method == "set" else 2
    assert (events[13], events[14], events[18], events[19], events[-1]) == (0, 1, 1, 2, 2)
    assert graphs[12] == variants
    assert graphs[18] <= 2 * variants
    assert graphs[-1] == 3 * variants
    assert dst.hardening.recompilations == graphs[-1] - variants
    assert not counters["graph_break"]
    assert {n: t.data_ptr() for n, t in model.state_dict().items()} == kept


def test_compiled_by_inductor_it_computes_the_same_soft_and_hard():
    torch._dynamo.reset()
    torch.manual_seed(0)
    layer = SparseLinear(16, 24, "diag", 0.5, permutation="soft")
    layer.soft_perm.requires_grad_(True)
    compiled = torch.compile(layer, backend="padst", fullgraph=True)
    x = torch.randn(6, 16)
    for _ in range(2):
        y, expected = compiled(x), layer(x)
        torch.testing.assert_close(y, expected)
        parameters = list(layer.parameters())
        for own, other in zip(
            torch.autograd.grad(y.square().sum(), parameters),
            torch.autograd.grad(expected.square().sum(), parameters),
            strict=True,
        ):
            torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-5)
        layer.harden(torch.randperm(16).int())


def test_a_hardened_matrix_is_not_kept_by_compiled_code():
    torch._dynamo.reset()
    model, optimizer, dst = trainer()
    compiled = torch.compile(
        model, backend="padst", fullgraph=True, options={"inner": "aot_eager"}
    )
    references = [weakref.ref(layer.soft_perm) for layer in layers_of(model)]
    for step in range(1, 9):
        loss_of(compiled, dst, step).backward()
        optimizer.step()
        optimizer.zero_grad()
        dst.step()
    gc.collect()
    assert all(reference() is None for reference in references)


@pytest.mark.parametrize("dst_first", [True, False])
def test_data_parallel_training_goes_on_after_hardening(tmp_path, dst_first):
    """A wrapper that listed the matrices would wait for their gradients."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        model = soft_model()
        optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
        run = model if dst_first else DistributedDataParallel(model)
        dst = DST(run, optimizer, "rigl", delta_t=2, t_end=40, soft=SOFT)
        run = DistributedDataParallel(model) if dst_first else run
        train(run, optimizer, dst, range(1, 12))
        assert is_hard(model)
    finally:
        dist.destroy_process_group()
