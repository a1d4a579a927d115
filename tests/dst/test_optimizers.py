"""Optimizers against themselves on dense masked float64 weights, step by step, and refusals."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from small_models import STRUCTURES, layers, smooth_model
from torch import nn
from torch._dynamo.testing import CompileCounter

import padst_fx
from padst_fx import DST, Block, Unstructured
from padst_fx.permutation import permute_columns


class Lion(torch.optim.Optimizer):
    """One momentum per weight and the sign of an interpolation (arXiv:2302.06675)."""

    def __init__(self, parameters, lr=1e-2, weight_decay=0.1):
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in (p for p in group["params"] if p.grad is not None):
                momentum = self.state[p].setdefault("exp_avg", torch.zeros_like(p))
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.sub_(torch.lerp(p.grad, momentum, 0.9).sign(), alpha=group["lr"])
                momentum.lerp_(p.grad, 0.01)


O = torch.optim  # noqa: E741
OPTIMIZERS = {
    "sgd": partial(O.SGD, lr=0.1, weight_decay=0.1),
    "momentum": partial(O.SGD, lr=0.05, momentum=0.9, dampening=0.1),
    "nesterov": partial(O.SGD, lr=0.05, momentum=0.9, nesterov=True, foreach=True),
    "adam amsgrad": partial(O.Adam, lr=1e-2, amsgrad=True),
    "adamw": partial(O.AdamW, lr=1e-2, foreach=False),
    "adamw foreach": partial(O.AdamW, lr=1e-2, foreach=True),
    "adamw fused": partial(O.AdamW, lr=1e-2, fused=True),
    "rmsprop": partial(O.RMSprop, lr=1e-3, momentum=0.9, centered=True),
    "adagrad": partial(O.Adagrad, lr=1e-2, initial_accumulator_value=0.1),
    "adadelta": partial(O.Adadelta, lr=0.5),
    "adamax": partial(O.Adamax, lr=1e-2),
    "nadam": partial(O.NAdam, lr=1e-2),
    "radam": partial(O.RAdam, lr=1e-2),
    "asgd": partial(O.ASGD, lr=1e-2, t0=3),
    "rprop": partial(O.Rprop, lr=1e-2),
    "lion": Lion,
}
# What torch documents as the first value of a slot, where it is not zero.
FIRST = {"step_size": 1e-2, "sum": 0.1}


def loss_of(model, number):
    generator = torch.Generator().manual_seed(number)
    x = torch.randn(8, 16, generator=generator, dtype=torch.float64)
    x = x.to(model[0].bias.device)
    return (model(x) - x[:, :4]).square().mean()


def mask(layer, perm=None):
    return permute_columns(layer.pattern.mask(layer.index), layer.perm if perm is None else perm)


class DenseTwin:
    """The same training on dense weights, their gradients masked, with no code of the layers'."""

    def __init__(self, model, make):
        self.model = padst_fx.densify(copy.deepcopy(model))
        self.optimizer = make(self.model)
        self.masks = {name: mask(layer) for name, layer in layers(model).items()}

    def backward(self, number):
        loss_of(self.model, number).backward()
        for name, inside in self.masks.items():
            self.model.get_submodule(name).weight.grad *= inside

    def follow(self, name, layer, perm):
        """Take a layer's new mask: what is new starts at zero, its slots as a fresh weight's."""
        weight = self.model.get_submodule(name).weight
        inside = mask(layer)
        kept = self.masks[name] & mask(layer, perm) & inside
        self.masks[name] = inside
        with torch.no_grad():
            weight *= kept
            for key, slot in self.optimizer.state[weight].items():
                if isinstance(slot, torch.Tensor) and slot.shape == weight.shape:
                    slot[~kept] = FIRST.get(key, 0.0)


def train_both(model, optimizer, dst, twin, between=lambda *_: None):
    """Train the model and its twin; asserts that they agree after every step."""
    grown = 0
    for number in range(12):
        loss_of(model, number).backward()
        twin.backward(number)
        between(number, (model, optimizer), (twin.model, twin.optimizer))
        optimizer.step()
        twin.optimizer.step()
        optimizer.zero_grad()
        twin.optimizer.zero_grad()
        perms = {name: layer.perm.clone() for name, layer in layers(model).items()}
        if dst.step():
            grown += dst.last_update.grown
            for name, layer in layers(model).items():
                twin.follow(name, layer, perms[name])
        assert_alike(model, optimizer, twin)
    assert grown > 0


def assert_alike(model, optimizer, twin):
    close = partial(torch.testing.assert_close, rtol=1e-8, atol=1e-12)
    for name, layer in layers(model).items():
        dense = twin.model.get_submodule(name)
        close(layer.dense_weight(), dense.weight.detach())
        close(layer.bias, dense.bias)
        slots = twin.optimizer.state[dense.weight]
        for key, slot in optimizer.state[layer.values].items():
            if isinstance(slot, torch.Tensor) and slot.shape == layer.values.shape:
                found = permute_columns(layer.pattern.dense(slot, layer.index), layer.perm)
                close(found, slots[key] * mask(layer))


@pytest.mark.parametrize("structure", ["diag", Block(4), Unstructured()], ids=str)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_training_is_that_of_the_dense_masked_weights(name, structure):
    model = smooth_model(structure)
    optimizer = OPTIMIZERS[name](model.parameters())
    dst = DST(model, optimizer, "rigl", delta_t=3, t_end=100, drop_fraction=0.5)
    twin = DenseTwin(model, lambda dense: OPTIMIZERS[name](dense.parameters()))
    train_both(model, optimizer, dst, twin)


@pytest.mark.parametrize("name", ["adamw", "adagrad", "rprop"])
@pytest.mark.parametrize("structure", STRUCTURES, ids=str)
def test_learned_permutations_move_slots_with_their_weights(monkeypatch, name, structure):
    moves = torch.Generator().manual_seed(0)
    monkeypatch.setattr(
        "padst_fx.dst.learned_permutation.choose_features",
        lambda gain, *_: torch.randperm(len(gain.constant), generator=moves),
    )
    model = smooth_model(structure, "learned")
    optimizer = OPTIMIZERS[name](model.parameters())
    dst = DST(model, optimizer, "rigl", delta_t=2, t_end=100, drop_fraction=0.5)
    twin = DenseTwin(model, lambda dense: OPTIMIZERS[name](dense.parameters()))
    train_both(model, optimizer, dst, twin)
    assert dst.last_update.moved > 0


def groups(model):
    """A layer by itself, no decay for biases, the head left for later."""
    first = list(model[0].parameters())
    biases = [model[2].bias]
    rest = [p for p in model[2].parameters() if p is not model[2].bias]
    return torch.optim.AdamW(
        [
            {"params": first[:1], "lr": 3e-2, "weight_decay": 0.3},
            {"params": [*first[1:], *biases], "weight_decay": 0.0},
            {"params": rest},
        ],
        lr=1e-2,
        weight_decay=0.1,
    )


def test_groups_decay_schedules_and_a_group_added_later():
    model = smooth_model()
    optimizer = groups(model)
    dst = DST(model, optimizer, "rigl", delta_t=3, t_end=100, drop_fraction=0.5)
    twin = DenseTwin(model, groups)
    schedulers = {
        id(held): torch.optim.lr_scheduler.CosineAnnealingLR(held, 12)
        for held in (optimizer, twin.optimizer)
    }

    def between(number, *trainings):
        for module, held in trainings:
            if number == 5:
                held.add_param_group({"params": module[3].parameters(), "lr": 1e-3})
                schedulers[id(held)] = torch.optim.lr_scheduler.ExponentialLR(held, 0.9)
            elif number:
                schedulers[id(held)].step()

    train_both(model, optimizer, dst, twin, between)
    torch.testing.assert_close(model[3].weight, twin.model[3].weight, rtol=1e-9, atol=1e-12)
    assert len({group["lr"] for group in optimizer.param_groups}) == 3


@pytest.mark.parametrize("clip", ["norm", "value"])
@pytest.mark.parametrize("structure", STRUCTURES, ids=str)
def test_clipping_is_that_of_the_masked_dense_gradients(structure, clip):
    model = smooth_model(structure)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    dst = DST(model, optimizer, "rigl", delta_t=3, t_end=100, drop_fraction=0.5)
    twin = DenseTwin(model, lambda dense: torch.optim.SGD(dense.parameters(), 0.1, momentum=0.9))

    def between(_, *trainings):
        if clip == "value":
            for module, _ in trainings:
                nn.utils.clip_grad_value_(module.parameters(), 1e-3)
            return
        ours, dense = (nn.utils.clip_grad_norm_(m.parameters(), 1e-2) for m, _ in trainings)
        assert ours > 1e-2
        torch.testing.assert_close(ours, dense, rtol=1e-9, atol=0)

    train_both(model, optimizer, dst, twin, between)


def test_muon_has_the_dense_matrices_and_another_optimizer_the_sparse_values():
    model = smooth_model()
    rest = [p for n, p in model.named_parameters() if n != "3.weight"]
    muon = torch.optim.Muon([model[3].weight], lr=1e-2)
    optimizer = torch.optim.AdamW(rest, 1e-2)
    dst = DST(model, optimizer, "rigl", delta_t=3, t_end=100, drop_fraction=0.5)

    def make(dense):
        rest = [p for n, p in dense.named_parameters() if n != "3.weight"]
        return torch.optim.AdamW(rest, 1e-2)

    twin = DenseTwin(model, make)
    other = torch.optim.Muon([twin.model[3].weight], lr=1e-2)

    def between(*_):
        for held in (muon, other):
            held.step()
            held.zero_grad()

    train_both(model, optimizer, dst, twin, between)


@pytest.mark.parametrize("name", ["adamw", "adamw foreach", "momentum", "adagrad"])
def test_compiled_steps_count_and_are_not_compiled_anew_by_updates(name):
    torch._dynamo.reset()
    model = smooth_model()
    optimizer = OPTIMIZERS[name](model.parameters())
    # MEST has its say inside `optimizer.step`.
    dst = DST(model, optimizer, "mest", delta_t=3, t_end=100, drop_fraction=0.5)
    twin = DenseTwin(model, lambda dense: OPTIMIZERS[name](dense.parameters()))
    graphs = CompileCounter()
    optimizer.step = torch.compile(optimizer.step, backend=graphs)
    # Its arithmetic differs: Adam's step counts take part in float32.
    twin.optimizer.step = torch.compile(twin.optimizer.step, backend="eager")
    counts = []

    def between(*_):
        counts.append(graphs.frame_count)

    train_both(model, optimizer, dst, twin, between)
    assert dst.steps == 12
    # A first step makes momenta: SGD has one graph for it, one for later.
    assert 1 <= counts[2] == graphs.frame_count <= 2


def test_capturable_is_refused_by_torch_on_a_cpu():
    model = smooth_model()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2, capturable=True)
    dst = DST(model, optimizer, "rigl", delta_t=1)
    loss_of(model, 0).backward()
    with pytest.raises(AssertionError, match=r"capturable=True, params .* on supported devices"):
        optimizer.step()
    assert not dst.step() and dst.steps == 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("options", [{}, {"foreach": True}, {"fused": True}], ids=str)
def test_capturable_steps_on_a_gpu_are_those_of_the_dense_masked_weights(options):
    """Step counts are tensors on the device there; DST leaves them alone."""

    def make(model):
        return torch.optim.AdamW(model.parameters(), 1e-2, capturable=True, **options)

    model = smooth_model(Block(4)).cuda()
    optimizer = make(model)
    dst = DST(model, optimizer, "rigl", delta_t=3, t_end=100, drop_fraction=0.5)
    train_both(model, optimizer, dst, DenseTwin(model, make))
    assert optimizer.state[model[0].values]["step"].is_cuda


def test_steps_that_no_hook_tells_of_are_warned_of(caplog):
    """As where a CUDA graph is replayed in place of `optimizer.step()`."""
    model = smooth_model()
    dst = DST(model, torch.optim.SGD(model.parameters(), 0.1), "rigl", delta_t=1)
    for _ in range(250):
        assert not dst.step()
    assert dst.steps == 0
    assert [record.message[:47] for record in caplog.records] == [
        "100 calls of DST.step without a step of the opt"
    ]


class Within(torch.optim.SGD):
    """An optimizer around another, both with a state, such as SAM."""

    def __init__(self, parameters):
        super().__init__(parameters, lr=0.1)
        self.base_optimizer = torch.optim.AdamW(self.param_groups)


class Accelerated(torch.optim.Optimizer):
    """A wrapper that is an optimizer and has no state of its own, such as Accelerate's."""

    def __init__(self, optimizer):
        self.optimizer = optimizer

    state = property(lambda self: self.optimizer.state)
    param_groups = property(lambda self: self.optimizer.param_groups)

    def step(self, closure=None):
        self.optimizer.step(closure)

    def zero_grad(self, set_to_none=True):
        self.optimizer.zero_grad(set_to_none)


class Lookahead:
    """A wrapper with slow weights of its own."""

    def __init__(self, optimizer):
        self.optimizer = optimizer
        self.state = {p: p.clone() for g in optimizer.param_groups for p in g["params"]}


REFUSED = {
    r"LBFGS does not keep its state per parameter.*\(SGD": torch.optim.LBFGS,
    r"Within does not keep its state per parameter": Within,
    r"Lookahead does not keep its state": lambda p: Lookahead(torch.optim.SGD(p, 0.1)),
    r"Muon orthogonalizes its parameters as matrices, .* dense matrices, .*\(SGD": (
        lambda p: torch.optim.Muon([w for w in p if w.ndim == 2])
    ),
}


@pytest.mark.parametrize("message", REFUSED)
def test_optimizers_refused_at_once(message):
    model = smooth_model()
    with pytest.raises(ValueError, match=message):
        DST(model, REFUSED[message](list(model.parameters())))
    assert not any(layer.scoring for layer in layers(model).values())


def test_torch_refuses_what_takes_no_dense_gradients_or_no_values_of_four_dimensions():
    with pytest.raises(ValueError, match="Muon only supports 2D parameters"):
        torch.optim.Muon([smooth_model(Block(4))[0].values])
    model = smooth_model()
    optimizer = torch.optim.SparseAdam(model.parameters())
    dst = DST(model, optimizer, "rigl")
    loss_of(model, 0).backward()
    with pytest.raises(RuntimeError, match="SparseAdam does not support dense gradients"):
        optimizer.step()
    assert not dst.step() and dst.steps == 0


class Quantized(torch.Tensor):
    """Of the parameter's shape, but with scales for blocks of it, as 8-bit moments have."""


STATES = {
    r"'row' of shape \(8, 1\) for 0\.values of shape \(8, 16\): units cannot be moved": (
        lambda p: {"row": p.sum(1, keepdim=True)}
    ),
    r"'preconditioners' of shape \(16, 16\) for 0\.values": (
        lambda p: {"preconditioners": [torch.zeros_like(p), p.t() @ p]}
    ),
    r"'moment' of shape \(8, 16\) \(Quantized\)": (
        lambda p: {"moment": p.clone().as_subclass(Quantized)}
    ),
    r"'projector', a Linear, for 0\.values: units cannot be moved in it. Use .*\(SGD": (
        lambda p: {"projector": nn.Linear(2, 2)}
    ),
}


@pytest.mark.parametrize("message", STATES)
def test_state_that_units_cannot_be_moved_in_is_refused_at_the_first_step(message):
    model = smooth_model()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    dst = DST(model, optimizer, "set", delta_t=1, t_end=10)
    with torch.no_grad():
        optimizer.state[model[0].values].update(STATES[message](model[0].values))
    loss_of(model, 0).backward()
    optimizer.step()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=f"SGD keeps {message}"):
        dst.step()
    assert dst.steps == 0
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


def test_nested_slots_of_the_parameters_shape_move_too():
    model = smooth_model()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    dst = DST(model, optimizer, "set", delta_t=1, t_end=10, drop_fraction=0.5)
    values = model[0].values
    slot = values.detach().clone()
    optimizer.state[values].update({"history": {"slow": [slot, None, 3]}, "kind": "ring"})
    loss_of(model, 0).backward()
    before = model[0].pattern.dense(slot.clone(), model[0].index)
    assert not optimizer.step() and dst.step()
    after = model[0].pattern.dense(slot, model[0].index)
    inside = model[0].pattern.mask(model[0].index)
    assert torch.equal(after, before * inside) and not torch.equal(after, before)


def test_wrappers_without_state_are_looked_through():
    model = smooth_model()
    inner = torch.optim.AdamW(model.parameters(), 1e-2)
    dst = DST(model, Accelerated(inner), "rigl", delta_t=3, t_end=100, drop_fraction=0.5)
    twin = DenseTwin(model, lambda dense: torch.optim.AdamW(dense.parameters(), 1e-2))
    train_both(model, Accelerated(inner), dst, twin)
    assert dst.optimizer is inner
