"""DST beyond the plain loop: copies, moves, other optimizers, reused layers, wrong state."""

from __future__ import annotations

import copy
import gc
import pickle

import pytest
import torch
from torch import nn

import padst_fx
from padst_fx import DST, NM, Block, Diag, SparseLinear


def sparse_model(structure="diag", sparsity=0.75) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 16), nn.Linear(16, 4))
    return padst_fx.sparsify(model, structure, sparsity)


def loss_of(model, step=0):
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(8, 16, generator=generator).to(next(model.parameters()).dtype)
    return model(x).square().mean()


def train(model, optimizer, dst, steps=8):
    changed = []
    for step in range(steps):
        loss_of(model, step).backward()
        optimizer.step()
        optimizer.zero_grad()
        changed.append(dst.step())
    return changed


class View(torch.optim.Optimizer):
    """An optimizer that shows another's state as its own, like Accelerate's."""

    def __init__(self, optimizer):
        self.optimizer = optimizer

    @property
    def state(self):
        return self.optimizer.state


class Slow(torch.optim.Optimizer):
    """An optimizer with a state of its own around another, like a look-ahead."""

    def __init__(self, optimizer):
        super().__init__(optimizer.param_groups, {})
        self.optimizer = optimizer


def test_only_optimizers_without_a_state_are_looked_through():
    model = sparse_model()
    inner = torch.optim.Adam(model.parameters())
    dst = DST(model, View(View(inner)), delta_t=2)
    assert dst.optimizer is inner
    assert any(train(model, inner, dst))
    dst.close()
    with pytest.raises(ValueError, match="Slow does not keep its state per parameter"):
        DST(model, Slow(inner))


def test_a_copied_trio_goes_on_alike():
    model = sparse_model()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    dst = DST(model, optimizer, "rigl", delta_t=2, t_end=100)
    train(model, optimizer, dst, 1)
    others = copy.deepcopy((model, optimizer, dst))
    assert train(model, optimizer, dst) == train(*others)
    for a, b in zip(model.state_dict().values(), others[0].state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_a_model_copied_on_a_scoring_step_does_not_score():
    model = sparse_model()
    dst = DST(model, torch.optim.SGD(model.parameters(), 0.1), delta_t=1)
    assert all(state.layer.scoring for state in dst.states)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        loss_of(other).backward()
        layers = [m for m in other.modules() if isinstance(m, SparseLinear)]
        assert layers and all(m.probe.grad is None for m in layers)


@pytest.mark.parametrize("move", [lambda m: m.double(), lambda m: m.double().float()])
def test_moving_an_armed_model_keeps_its_scores(move):
    model = sparse_model()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    dst = DST(model, optimizer, "rigl", delta_t=1, t_end=100)
    move(model)
    assert train(model, optimizer, dst, 2) == [True, True]
    assert dst.last_update.skipped == ()


def test_scores_of_a_layer_used_twice_add_up():
    layer = SparseLinear(16, 16, Block(4), 0.75)
    model = nn.ModuleList([layer])
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    dst = DST(model, optimizer, "rigl", delta_t=1, t_end=100)
    x = torch.randn(8, 16)
    hidden = layer(x)
    y = layer(hidden.relu())
    y.square().mean().backward()
    growth = dst.states[0].growth
    gradient_y = 2 * y.detach() / y.numel()
    dense = layer.dense_weight()
    gradient_hidden = (gradient_y @ dense) * (hidden.detach() > 0)
    norms = layer.pattern.unit_norms_of_dense
    expected = norms(gradient_y.t() @ hidden.detach().relu()) + norms(gradient_hidden.t() @ x)
    torch.testing.assert_close(growth, expected, rtol=1e-4, atol=1e-6)


def test_an_nm_layer_used_twice_is_refused_not_corrupted():
    layer = SparseLinear(16, 16, NM(1, 8))
    model = nn.ModuleDict({"shared": layer})
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    dst = DST(model, optimizer, "rigl", delta_t=1, t_end=100)
    y = layer(layer(torch.randn(8, 16)).relu())
    message = r"shared \(NM.*used more than once.*'set', 'mest' or 'rigl_exact'"
    with pytest.raises(RuntimeError, match=message):
        y.square().mean().backward()
    dst.close()
    dst = DST(model, optimizer, "set", delta_t=1, t_end=100)
    layer(layer(torch.randn(8, 16)).relu()).square().mean().backward()
    optimizer.step()
    assert dst.step()
    assert layer.index.max() < 8


def test_full_groups_have_nothing_to_exchange():
    model = sparse_model(NM(2, 2), None)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    dst = DST(model, optimizer, "rigl", delta_t=1, t_end=100)
    assert train(model, optimizer, dst, 2) == [False, False]
    assert dst.last_update.grown == 0


def test_one_element_parameters_lose_their_slots_too():
    torch.manual_seed(0)
    model = nn.ModuleList([SparseLinear(16, 1, Diag(), 0.95)])
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    dst = DST(model, optimizer, "set", delta_t=2, t_end=100, drop_fraction=1.0)
    for step in range(2):
        model[0](torch.randn(4, 16)).sum().backward()
        optimizer.step()
        assert dst.step() == (step == 1)
    state = optimizer.state[model[0].values]
    assert model[0].values.numel() == 1
    assert model[0].values.item() == state["exp_avg"].item() == state["exp_avg_sq"].item() == 0


def test_the_gradient_of_a_grown_unit_is_zero_as_well():
    model = sparse_model()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    dst = DST(model, optimizer, "set", delta_t=1, t_end=100)
    loss_of(model).backward()
    optimizer.step()
    layer = model[0]
    before = layer.pattern.mask(layer.index)
    assert dst.step()
    grown = layer.pattern.mask(layer.index) & ~before
    assert grown.any()
    assert (layer.pattern.dense(layer.values.grad, layer.index)[grown] == 0).all()


def test_mest_with_a_closure_reads_the_gradient_of_this_step():
    model = sparse_model()
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    dst = DST(model, optimizer, "mest", delta_t=1, t_end=100)

    def closure():
        optimizer.zero_grad()
        loss = loss_of(model)
        loss.backward()
        return loss

    optimizer.step(closure)
    expected = model[0].values.grad.norm(dim=1)
    torch.testing.assert_close(dst.states[0].gradient_norms[0], expected)
    assert dst.step()


def test_create_graph_on_a_scoring_step_keeps_no_graph():
    model = sparse_model()
    dst = DST(model, torch.optim.SGD(model.parameters(), 0.1), delta_t=1)
    loss_of(model).backward(create_graph=True)
    assert all(not state.growth.requires_grad for state in dst.states)


def test_a_second_manager_is_refused_until_the_first_is_closed_or_gone():
    model = sparse_model()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    first = DST(model, optimizer, "rigl", delta_t=1, t_end=100)
    with pytest.raises(ValueError, match=r"0 has a DST already; call its close\(\) first"):
        DST(model, optimizer)
    assert train(model, optimizer, first, 1) == [True]
    first.close()
    second = DST(model, optimizer, "rigl", delta_t=1, t_end=100)
    assert train(model, optimizer, second, 1) == [True]
    del second
    gc.collect()
    third = DST(model, optimizer, "rigl", delta_t=1, t_end=100)
    assert train(model, optimizer, third, 1) == [True]


@pytest.mark.parametrize("make", [torch.optim.LBFGS, lambda p: _Sharded(p, lr=0.1)])
def test_optimizers_without_state_per_parameter_are_refused(make):
    model = sparse_model()
    with pytest.raises(ValueError, match="does not keep its state per parameter"):
        DST(model, make(model.parameters()))


class _Sharded(torch.optim.SGD):
    """Keeps its real optimizer inside, as ZeroRedundancyOptimizer does."""

    def __init__(self, parameters, lr):
        super().__init__(parameters, lr=lr)
        self.optim = torch.optim.SGD(self.param_groups[0]["params"], lr=lr)


def test_wrong_states_are_refused_with_nothing_changed():
    model = sparse_model()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    dst = DST(model, optimizer, "set", delta_t=2)
    train(model, optimizer, dst, 3)
    present = copy.deepcopy(dst.state_dict())
    other = sparse_model(Block(4))
    block = DST(other, torch.optim.SGD(other.parameters(), 0.1), "set").state_dict()
    for state, message in (
        ({}, "not a state of DST: it lacks generator"),
        (block, "0: the state is of BlockPattern.*, the layer has DiagPattern"),
    ):
        with pytest.raises(ValueError, match=message):
            dst.load_state_dict(state)
    after = dst.state_dict()
    assert after["steps"] == present["steps"] == 3
    assert torch.equal(after["generator"], present["generator"])


class TestDynaDiagInTheOptimizer:
    """The scores form one last parameter group, however the optimizer was built."""

    def alphas(self, model):
        return [m.alpha for m in model.modules() if isinstance(m, SparseLinear)]

    def check(self, model, optimizer, groups):
        assert len(optimizer.param_groups) == groups
        last = optimizer.param_groups[-1]
        assert [id(p) for p in last["params"]] == [id(a) for a in self.alphas(model)]
        assert last["weight_decay"] == 0
        every = [id(p) for group in optimizer.param_groups for p in group["params"]]
        assert len(every) == len(set(every)) == len(list(model.parameters()))

    def test_built_before_the_scores(self):
        model = sparse_model()
        optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
        DST(model, optimizer, "dynadiag")
        self.check(model, optimizer, 2)

    def test_built_from_names(self):
        model = sparse_model()
        optimizer = torch.optim.AdamW(model.named_parameters(), 1e-2)
        DST(model, optimizer, "dynadiag")
        self.check(model, optimizer, 2)
        assert optimizer.param_groups[-1]["param_names"] == ["0.alpha", "2.alpha"]

    def test_resumed_with_an_optimizer_of_all_parameters(self, tmp_path):
        def build():
            torch.manual_seed(0)
            return nn.Sequential(
                nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 16), nn.Linear(16, 4)
            )

        model = sparse_model()
        optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
        dst = DST(model, optimizer, "dynadiag", delta_t=2, t_end=100)
        train(model, optimizer, dst, 5)
        padst_fx.save(model, tmp_path / "model")
        states = copy.deepcopy((optimizer.state_dict(), dst.state_dict()))
        resumed = padst_fx.load(build, tmp_path / "model")
        other = torch.optim.AdamW(resumed.parameters(), 1e-2)
        other_dst = DST(resumed, other, "dynadiag", delta_t=2, t_end=100)
        other.load_state_dict(states[0])
        other_dst.load_state_dict(states[1])
        self.check(resumed, other, 2)
        assert train(model, optimizer, dst) == train(resumed, other, other_dst)
        for a, b in zip(model.state_dict().values(), resumed.state_dict().values(), strict=True):
            assert torch.equal(a, b)

    def test_a_wrong_structure_changes_nothing(self):
        torch.manual_seed(0)
        model = nn.ModuleList(
            [SparseLinear(16, 16, "diag", 0.5), SparseLinear(16, 16, Block(4), 0.5)]
        )
        optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
        before = copy.deepcopy(model.state_dict())
        with pytest.raises(ValueError, match="1 has Block"):
            DST(model, optimizer, "dynadiag")
        assert model.state_dict().keys() == before.keys()
        assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
        assert len(optimizer.param_groups) == 1


def test_another_default_device_does_not_matter():
    model = sparse_model(NM(1, 5), None)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    torch.set_default_device("meta")
    try:
        dst = DST(model, optimizer, "set", delta_t=1, t_end=100)
        model(torch.randn(4, 16, device="cpu")).sum().backward()
        optimizer.step()
        assert dst.step()
    finally:
        torch.set_default_device(None)
