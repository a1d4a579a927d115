"""DST on real training loops: invariants after updates, methods, resuming, bad input."""

from __future__ import annotations

import copy
import itertools
import math

import pytest
import torch
from torch import nn

import padst_fx
from padst_fx import DST, NM, Block, Diag, SparseLinear, Unstructured
from padst_fx.dst.schedule import SCHEDULES

STRUCTURES = ["diag", Diag(run=2), Diag(width=4), Block(4), "nm", NM(2, 4), Unstructured()]
METHODS = ["set", "rigl", "rigl_exact", "mest", "dynadiag"]
OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, 1e-2),
    "momentum": lambda p: torch.optim.SGD(p, 1e-2, momentum=0.9),
    "adam": lambda p: torch.optim.Adam(p, 1e-2, amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, 1e-2, foreach=False),
    "adamw foreach": lambda p: torch.optim.AdamW(p, 1e-2, foreach=True),
    "adamw fused": lambda p: torch.optim.AdamW(p, 1e-2, fused=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, 1e-3, momentum=0.9, centered=True),
}


def sparse_model(structure="diag", *, seed=0, permutation="random") -> nn.Module:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 16), nn.Linear(16, 4))
    sparsity = 0.5 if isinstance(structure, NM) else 0.75
    return padst_fx.sparsify(model, structure, sparsity, permutation=permutation)


def batch(step, size=8):
    generator = torch.Generator().manual_seed(step)
    return torch.randn(size, 16, generator=generator), torch.randn(size, 4, generator=generator)


def train(model, optimizer, dst, steps, *, accumulate=1):
    """Losses and results of `dst.step()` over the given steps."""
    losses, changed = [], []
    for step in steps:
        for part in range(accumulate):
            x, y = batch(step * accumulate + part)
            loss = nn.functional.mse_loss(model(x), y) + dst.penalty()
            (loss / accumulate).backward()
        optimizer.step()
        optimizer.zero_grad()
        changed.append(dst.step())
        losses.append(loss.item())
    return losses, changed


def sparse_layers(model):
    return [(n, m) for n, m in model.named_modules() if isinstance(m, SparseLinear)]


def supported(structure, method):
    return method != "dynadiag" or isinstance(structure, Diag) or structure == "diag"


CASES = [(s, m) for s, m in itertools.product(STRUCTURES, METHODS) if supported(s, m)]


@pytest.mark.parametrize(("structure", "method"), CASES, ids=str)
def test_updates_keep_addresses_counts_and_structure(structure, method):
    model = sparse_model(structure)
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    updates = []
    dst = DST(model, optimizer, method, delta_t=3, t_end=100, callback=updates.append)
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    before = {n: (t.data_ptr(), t.shape, t.dtype) for n, t in tensors.items()}
    _, changed = train(model, optimizer, dst, range(1, 13))
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    assert {n: (t.data_ptr(), t.shape, t.dtype) for n, t in tensors.items()} == before
    assert changed == [step % 3 == 0 for step in range(1, 13)]
    assert [update.step for update in updates] == [3, 6, 9, 12]
    for name, layer in sparse_layers(model):
        mask = layer.pattern.mask(layer.index)
        assert mask.sum() == layer.pattern.nonzeros
        outside = layer.pattern.dense(layer.values.detach(), layer.index)[~mask]
        assert (outside == 0).all()
        rate = next(u for u in updates[-1].layers if u.name == name).exploration
        active = layer.pattern.active * layer.pattern.groups
        assert active / layer.pattern.available().sum() < rate <= 1
    assert all(u.dropped == u.grown > 0 and not u.skipped for u in updates)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("structure", STRUCTURES, ids=str)
def test_grown_units_and_their_slots_are_zero_and_kept_ones_stay(structure, optimizer):
    model = sparse_model(structure)
    optimizer = OPTIMIZERS[optimizer](model.parameters())
    dst = DST(model, optimizer, "rigl", delta_t=4, t_end=100)
    train(model, optimizer, dst, range(1, 4))
    x, y = batch(4)
    nn.functional.mse_loss(model(x), y).backward()
    optimizer.step()
    optimizer.zero_grad()

    def dense_forms(layer):
        state = optimizer.state[layer.values]
        shaped = {k: t for k, t in state.items() if t is not None and t.shape == layer.values.shape}
        tensors = {"values": layer.values.detach(), **shaped}
        return {k: layer.pattern.dense(t.clone(), layer.index) for k, t in tensors.items()}

    layers = sparse_layers(model)
    before = [(layer.pattern.mask(layer.index), dense_forms(layer)) for _, layer in layers]
    steps = [optimizer.state[layer.values].get("step") for _, layer in layers]
    assert dst.step()
    for (_, layer), (old, tensors), step in zip(layers, before, steps, strict=True):
        new = layer.pattern.mask(layer.index)
        assert (new & ~old).any()
        for key, after in dense_forms(layer).items():
            assert (after[new & ~old] == 0).all(), key
            assert torch.equal(after[new & old], tensors[key][new & old]), key
        assert optimizer.state[layer.values].get("step") == step


def test_rigl_drops_the_smallest_norms_and_grows_the_largest_gradients():
    model = sparse_model("diag")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    dst = DST(model, optimizer, "rigl", delta_t=2, t_end=10**6, drop_fraction=0.5)
    train(model, optimizer, dst, [1])
    _, layer = sparse_layers(model)[0]
    old = set(dst.states[0].units()[0].tolist())
    norms = layer.values.detach().norm(dim=1)
    dense = copy.deepcopy(model)
    padst_fx.densify(dense)
    x, y = batch(2)
    nn.functional.mse_loss(dense(x), y).backward()
    gradient = dense[0].weight.grad[:, layer.perm.long()]
    scores = layer.pattern.unit_norms_of_dense(gradient)[0]
    _, changed = train(model, optimizer, dst, [2])
    assert changed == [True]
    count = round(len(old) * 0.5)
    kept = sorted(old, key=lambda u: norms[sorted(old).index(u)])[count:]
    grown = sorted((u for u in range(32) if u not in old), key=lambda u: -scores[u])[:count]
    assert set(dst.states[0].units()[0].tolist()) == set(kept) | set(grown)


def test_mest_drops_by_magnitude_plus_gradient():
    model = sparse_model("diag", permutation="identity")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    dst = DST(model, optimizer, "mest", delta_t=1, t_end=10**6, drop_fraction=0.5)
    _, layer = sparse_layers(model)[0]
    x, y = batch(1)
    nn.functional.mse_loss(model(x), y).backward()
    importance = layer.values.detach().norm(dim=1) + layer.values.grad.norm(dim=1)
    old = dst.states[0].units()[0]
    optimizer.step()
    optimizer.zero_grad()
    assert dst.step()
    strongest = old[importance.argsort(descending=True)[: len(old) - round(len(old) * 0.5)]]
    assert set(strongest.tolist()) <= set(dst.states[0].units()[0].tolist())


def test_dynadiag_starts_from_the_same_function_and_trains_its_scores():
    model = sparse_model("diag")
    x, _ = batch(0)
    before = model(x)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    dst = DST(model, optimizer, "dynadiag", delta_t=2, t_end=8)
    torch.testing.assert_close(model(x), before)
    layer = sparse_layers(model)[0][1]
    start = layer.alpha.detach().clone()
    temperatures = []
    for step in range(1, 10):
        train(model, optimizer, dst, [step])
        temperatures.append(layer.temperature.item())
    assert not torch.equal(layer.alpha, start)
    assert temperatures == sorted(temperatures, reverse=True)
    assert temperatures[-1] == pytest.approx(dst.method.LAST_TEMPERATURE)
    sparse = model(x)
    dense = padst_fx.densify(copy.deepcopy(model))
    torch.testing.assert_close(dense(x), sparse, rtol=1e-4, atol=1e-5)


def test_dynadiag_needs_diagonals():
    model = sparse_model(Block(4))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with pytest.raises(ValueError, match="'dynadiag' needs the structure Diag, but 0 has Block"):
        DST(model, optimizer, "dynadiag")


@pytest.mark.parametrize("structure", ["diag", Block(4), NM(2, 4), Unstructured()], ids=str)
def test_scores_accumulate_over_micro_batches(structure):
    """The score of two passes is the sum of each pass's score (NM: over the slots both found)."""
    model = sparse_model(structure)
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    dst = DST(model, optimizer, "rigl", delta_t=1, t_end=100)
    single = []
    for part in (0, 1):
        x, y = batch(part)
        nn.functional.mse_loss(model(x), y).backward()
        single.append([state.growth.clone() for state in dst.states])
        for state in dst.states:
            state.growth = None
    for part in (0, 1):
        x, y = batch(part)
        nn.functional.mse_loss(model(x), y).backward()
    for state, a, b in zip(dst.states, *single, strict=True):
        torch.testing.assert_close(state.growth, state.layer.pattern.merge_growth(a, b))
        assert state.layer.probe.grad is None


@pytest.mark.parametrize("structure", ["diag", Block(4), NM(2, 4), Unstructured()], ids=str)
def test_exact_scores_of_micro_batches_are_those_of_the_whole_batch(structure):
    model = sparse_model(structure).double()
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    dst = DST(model, optimizer, "rigl_exact", delta_t=1, t_end=100)
    parts = [[tensor.double() for tensor in batch(part)] for part in (0, 1)]
    for x, y in parts:
        (nn.functional.mse_loss(model(x), y) / 2).backward()
    found = [state.growth_candidates() for state in dst.states]
    dense = padst_fx.densify(copy.deepcopy(model))
    x, y = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    nn.functional.mse_loss(dense(x), y).backward()
    for state, (scores, ids) in zip(dst.states, found, strict=True):
        layer = state.layer
        gradient = dense.get_submodule(state.name).weight.grad[:, layer.perm.long()]
        expected = layer.pattern.unit_norms_of_dense(gradient)
        torch.testing.assert_close(scores, expected.to(scores), rtol=1e-6, atol=1e-9)
        assert torch.equal(ids[0], torch.arange(layer.pattern.candidates))


@pytest.mark.parametrize("method", ["rigl", "rigl_exact", "set", "mest"])
def test_gradient_accumulation_updates_once(method):
    model = sparse_model("diag")
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    dst = DST(model, optimizer, method, delta_t=2, t_end=100)
    _, changed = train(model, optimizer, dst, range(1, 5), accumulate=3)
    assert changed == [False, True, False, True]
    assert dst.steps == 4


def test_skipped_optimizer_steps_do_not_count():
    model = sparse_model("diag")
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=10**6)
    dst = DST(model, optimizer, "rigl", delta_t=2, t_end=100)
    changed = []
    for step in range(1, 6):
        x, y = batch(step)
        loss = nn.functional.mse_loss(model(x), y)
        if step == 2:
            loss = loss * math.inf
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        changed.append(dst.step())
    assert dst.steps == 4
    assert dst.put_off == 0
    assert changed == [False, False, True, False, True]


def test_non_finite_scores_put_the_update_off_and_training_goes_on():
    model = sparse_model("diag")
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    dst = DST(model, optimizer, "rigl", delta_t=2, t_end=100)
    units = [state.units() for state in dst.states]
    train(model, optimizer, dst, [1])
    x, y = batch(2)
    nn.functional.mse_loss(model(x * math.nan), y).backward()
    optimizer.zero_grad()
    optimizer.step()
    assert not dst.step()
    assert dst.put_off == 1
    for state, old in zip(dst.states, units, strict=True):
        assert torch.equal(state.units(), old)
    _, changed = train(model, optimizer, dst, [3, 4])
    assert changed == [True, True]


def test_a_layer_not_reached_is_skipped_and_named():
    model = nn.ModuleDict({"used": nn.Linear(16, 16), "idle": nn.Linear(16, 16)})
    padst_fx.sparsify(model, "diag", 0.75, include=["used", "idle"])
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    dst = DST(model, optimizer, "rigl", delta_t=1, t_end=10)
    model["used"](torch.randn(4, 16)).square().sum().backward()
    optimizer.step()
    assert dst.step()
    assert dst.last_update.skipped == ("idle",)
    assert [layer.name for layer in dst.last_update.layers] == ["used"]


def test_no_update_from_t_end_on():
    model = sparse_model("diag")
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    dst = DST(model, optimizer, "set", delta_t=2, t_end=4, schedule="constant")
    _, changed = train(model, optimizer, dst, range(1, 9))
    assert changed == [False, True] + [False] * 6


def test_frozen_layers_are_left_alone():
    model = sparse_model("diag")
    model[0].requires_grad_(False)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1)
    dst = DST(model, optimizer, "rigl", delta_t=1, t_end=10)
    assert [state.name for state in dst.states] == ["2"]
    old = model[0].index.clone()
    train(model, optimizer, dst, [1])
    assert torch.equal(model[0].index, old)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("stop", [3, 4, 5])
def test_stop_save_load_go_on_is_bit_identical(tmp_path, method, stop):
    def start():
        model = sparse_model("diag")
        optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
        return model, optimizer, DST(model, optimizer, method, delta_t=4, t_end=100)

    model, optimizer, dst = start()
    losses, _ = train(model, optimizer, dst, range(1, 13))

    model, optimizer, dst = start()
    train(model, optimizer, dst, range(1, stop + 1))
    padst_fx.save(model, tmp_path / "model.safetensors")
    torch.save((optimizer.state_dict(), dst.state_dict()), tmp_path / "rest.pt")

    def dense():
        torch.manual_seed(99)
        return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 16), nn.Linear(16, 4))

    resumed = padst_fx.load(dense, tmp_path / "model.safetensors")
    optimizer = torch.optim.AdamW(
        [p for n, p in resumed.named_parameters() if not n.endswith("alpha")], 1e-2
    )
    dst = DST(resumed, optimizer, method, delta_t=4, t_end=100)
    saved_optimizer, saved_dst = torch.load(tmp_path / "rest.pt", weights_only=True)
    optimizer.load_state_dict(saved_optimizer)
    dst.load_state_dict(saved_dst)
    rest, _ = train(resumed, optimizer, dst, range(stop + 1, 13))
    assert rest == losses[stop:]


def test_stop_between_scoring_and_update():
    """Saved after the backward of a scoring step, before its `dst.step()`."""

    def start():
        model = sparse_model("diag")
        optimizer = torch.optim.SGD(model.parameters(), 1e-2)
        return model, optimizer, DST(model, optimizer, "rigl", delta_t=2, t_end=100)

    def half_step(model, optimizer, step):
        x, y = batch(step)
        nn.functional.mse_loss(model(x), y).backward()

    model, optimizer, dst = start()
    train(model, optimizer, dst, [1])
    half_step(model, optimizer, 2)
    other, other_optimizer, other_dst = start()
    other.load_state_dict(model.state_dict())
    other_dst.load_state_dict(copy.deepcopy(dst.state_dict()))
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        b.grad = None if a.grad is None else a.grad.clone()
    for opt, manager in ((optimizer, dst), (other_optimizer, other_dst)):
        opt.step()
        assert manager.step()
    for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_state_of_another_method_or_model_is_refused():
    model = sparse_model("diag")
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    state = DST(model, optimizer, "set").state_dict()
    with pytest.raises(ValueError, match="method 'set', this is 'rigl'"):
        DST(model, optimizer, "rigl").load_state_dict(state)
    state["layers"]["other"] = state["layers"].pop("0")
    with pytest.raises(ValueError, match="other layers; they differ in"):
        DST(model, optimizer, "set").load_state_dict(state)


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        (
            {"method": "rig"},
            "unknown method 'rig'; valid: 'set', 'rigl', 'rigl_exact', 'mest', 'dynadiag'",
        ),
        ({"schedule": "step"}, "unknown schedule 'step'; valid: 'cosine', 'linear', 'constant'"),
        ({"delta_t": 0}, "delta_t must be a positive number of steps, got 0"),
        ({"t_end": -1}, "t_end must be a positive number"),
        ({"drop_fraction": 0.0}, r"drop_fraction must be in \(0, 1\], got 0.0"),
        ({"drop_fraction": 1.5}, r"drop_fraction must be in \(0, 1\]"),
    ],
)
def test_bad_arguments(keywords, message):
    model = sparse_model("diag")
    with pytest.raises(ValueError, match=message):
        DST(model, torch.optim.SGD(model.parameters(), 0.1), **keywords)


def test_an_optimizer_built_before_sparsify_is_refused():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 4))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    padst_fx.sparsify(model, "diag", 0.75)
    with pytest.raises(ValueError, match="does not hold the sparse values of 0; build it after"):
        DST(model, optimizer)


def test_a_model_without_sparse_layers_is_refused():
    model = nn.Linear(4, 4)
    with pytest.raises(ValueError, match=r"no SparseLinear; call padst_fx\.sparsify"):
        DST(model, torch.optim.SGD(model.parameters(), 0.1))


def test_something_else_than_an_optimizer_is_refused():
    with pytest.raises(TypeError, match=r"must be a torch.optim.Optimizer, got int"):
        DST(sparse_model("diag"), 3)


def test_factored_state_is_refused():
    model = sparse_model("diag")
    optimizer = torch.optim.Adafactor(model.parameters(), 1e-2)
    dst = DST(model, optimizer, "set", delta_t=5, t_end=10)
    with pytest.raises(ValueError, match=r"Adafactor keeps 'row_var' .* for 0\.values .*SGD, Adam"):
        train(model, optimizer, dst, [1])


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_are_pure_functions_of_the_step(name):
    schedule = SCHEDULES[name]
    assert schedule(0, 100, 0.3) == pytest.approx(0.3)
    assert schedule(100, 100, 0.3) == schedule(1000, 100, 0.3) == 0
    values = [schedule(step, 100, 0.3) for step in range(101)]
    assert values == sorted(values, reverse=True)
    halfway = {"cosine": 0.15, "linear": 0.15, "constant": 0.3}[name]
    assert schedule(50, 100, 0.3) == pytest.approx(halfway)


def test_penalty_is_zero_for_hard_permutations():
    model = sparse_model("diag")
    dst = DST(model, torch.optim.SGD(model.parameters(), 0.1))
    assert dst.penalty().item() == 0
