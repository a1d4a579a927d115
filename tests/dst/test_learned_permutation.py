"""Learned permutations in training: moves, invariants, resuming, skipped steps, bad input."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

import padst_fx
from benchmarks import permutation_problems as problems
from padst_fx import DST, NM, Block, Diag, LearnedPermutation, SparseLinear, Unstructured
from padst_fx.dst.assignment import Wanted
from padst_fx.dst.learned_permutation import PermutationState
from padst_fx.permutation import is_permutation

STRUCTURES = ["diag", Diag(width=4), Block(4), NM(2, 4), Unstructured()]
METHODS = ["set", "rigl", "rigl_exact", "mest", "dynadiag"]
KINDS = ["identity", "random", "soft", "learned"]
CASES = [(s, m) for s in STRUCTURES for m in METHODS
         if m != "dynadiag" or s == "diag"]  # fmt: skip


def sparse_model(structure="diag"):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 16), nn.Linear(16, 4))
    sparsity = 0.5 if isinstance(structure, NM) else 0.75
    return padst_fx.sparsify(model, structure, sparsity, permutation="learned")


def trio(structure="diag", method="rigl", **settings):
    model = sparse_model(structure)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    return model, optimizer, DST(model, optimizer, method, **{"delta_t": 2, **settings})


def backward(model, step, accumulate=1):
    for part in range(accumulate):
        generator = torch.Generator().manual_seed(step * accumulate + part)
        x = torch.randn(128, 16, generator=generator)
        y = x @ torch.randn(16, 4, generator=torch.Generator().manual_seed(0))
        (nn.functional.mse_loss(model(x), y) / accumulate).backward()


def train(model, optimizer, dst, steps):
    changed = []
    for step in steps:
        backward(model, step)
        optimizer.step()
        optimizer.zero_grad()
        changed.append(dst.step())
    return changed


def layers(model):
    return [m for m in model.modules() if isinstance(m, SparseLinear)]


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.values(), b.values(), strict=True))


def test_it_starts_shuffled_and_its_kind_is_shown():
    model, again = sparse_model(), sparse_model()
    for layer, same_seed in zip(layers(model), layers(again), strict=True):
        assert is_permutation(layer.perm) and torch.equal(layer.perm, same_seed.perm)
        # Of 16 features or more so many stay in place with a probability below 1e-6.
        assert int((layer.perm == torch.arange(layer.in_features)).sum()) < 10
    assert not torch.equal(layers(model)[1].perm[:16], layers(model)[0].perm)
    assert "learned" in str(padst_fx.summary(model))
    kept = SparseLinear.from_dense(nn.Linear(16, 16), "diag", 0.5, permutation="learned")
    assert torch.equal(kept.perm, torch.arange(16).int())
    with pytest.raises(ValueError, match="'identity', 'random', 'learned'"):
        padst_fx.plan(nn.Linear(8, 8), "diag", 0.5, permutation="shuffled")


@pytest.mark.parametrize(("structure", "method"), CASES, ids=str)
def test_updates_move_positions_and_nothing_else_changes(structure, method):
    updates, changed = [], []

    def observe(update):
        perms = [layer.perm.clone() for layer in layers(model)]
        changed.append([int((a != b).sum()) for a, b in zip(perms, last_perms, strict=True)])
        last_perms[:] = perms
        updates.append(update)

    model, optimizer, dst = trio(structure, method, callback=observe)
    last_perms = [layer.perm.clone() for layer in layers(model)]
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    before = {n: (t.data_ptr(), t.shape, t.dtype) for n, t in tensors.items()}
    assert train(model, optimizer, dst, range(1, 41)) == [False, True] * 20
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    assert {n: (t.data_ptr(), t.shape, t.dtype) for n, t in tensors.items()} == before
    assert sum(update.moved for update in updates) > 0
    assert [[each.moved for each in update.permutations] for update in updates] == changed
    for layer, last in zip(layers(model), updates[-1].permutations, strict=True):
        assert is_permutation(layer.perm)
        assert layer.pattern.mask(layer.index).sum() == layer.pattern.nonzeros
        away = (layer.perm != torch.arange(layer.in_features)).double().mean()
        assert last.distance == pytest.approx(float(away))
        assert last.considered == layer.in_features
        assert last.change_rate == last.moved / layer.in_features


@pytest.mark.parametrize("structure", STRUCTURES, ids=str)
def test_weights_stay_with_their_features_and_new_ones_start_at_zero(structure):
    # So small a share of the units is none: only the permutation moves.
    model, optimizer, dst = trio(structure, "set", delta_t=4, drop_fraction=1e-9)
    train(model, optimizer, dst, range(1, 4))

    def dense_forms(layer):
        state = optimizer.state[layer.values]
        shaped = [state[key] for key in ("exp_avg", "exp_avg_sq")]
        tensors = [layer.values.detach(), layer.values.grad, *shaped]
        dense = [layer.pattern.dense(t.clone(), layer.index) for t in tensors]
        return [matrix[:, layer.perm.argsort()] for matrix in dense]

    def mask(layer):
        return layer.pattern.mask(layer.index)[:, layer.perm.argsort()]

    for step in range(4, 100):
        optimizer.zero_grad()
        backward(model, step)
        optimizer.step()
        before = [(mask(layer), dense_forms(layer)) for layer in layers(model)]
        if dst.step():
            break
    for layer, (before_mask, old) in zip(layers(model), before, strict=True):
        kept = mask(layer) & before_mask
        for was, now in zip(old, dense_forms(layer), strict=True):
            assert torch.equal(now[kept], was[kept])
            assert (now[~kept] == 0).all()
    assert dst.last_update.grown == 0 and dst.last_update.moved > 0


def test_the_planted_permutation_is_found():
    problem = problems.Problem(64, 6, known_diagonals=True)
    outcome = problems.train(problem, "learned", seed=0, steps=1500)
    assert outcome.found >= 0.95
    assert outcome.loss < 1e-2
    assert problems.train(problem, "random", seed=0, steps=1500).loss > 0.5


def test_soft_permutations_find_a_part_of_a_planted_one():
    problem = problems.Problem(64, 6, known_diagonals=True)
    outcomes = {kind: problems.train(problem, kind, 0, 1500) for kind in KINDS[:-1]}
    assert outcomes["soft"].found > 0.2
    assert outcomes["soft"].loss < 0.7 * min(outcomes[kind].loss for kind in KINDS[:2])


@pytest.mark.parametrize("correlation", [0.0, 0.9])
def test_a_teacher_of_unknown_diagonals_is_learned_best_behind_learned_permutations(correlation):
    problem = problems.Problem(64, 6, correlation=correlation)
    losses = {kind: problems.train(problem, kind, 0, 2000).loss for kind in KINDS}
    assert losses["learned"] < 0.5 * min(losses[kind] for kind in KINDS[:-1])
    if not correlation:  # else soft ones are within the spread of fixed ones
        assert losses["soft"] < 0.95 * min(losses[kind] for kind in KINDS[:2])


def test_a_few_positions_at_a_time_take_turns():
    settings = LearnedPermutation(positions=4)
    model, optimizer, dst = trio("diag", "set", delta_t=1, learned=settings)
    seen = []
    for step in range(1, 9):
        seen.append(model[0].positions.tolist())
        train(model, optimizer, dst, [step])
    assert seen[0::2] == seen[1::2]
    assert sorted(position for drawn in seen[0::2] for position in drawn) == list(range(16))


def test_accumulated_batches_give_the_signal_of_the_whole():
    model, _, dst = trio(delta_t=1)
    whole, _, other = trio(delta_t=1)
    backward(model, 1, accumulate=2)
    parts = [torch.Generator().manual_seed(2 + part) for part in range(2)]
    x = torch.cat([torch.randn(128, 16, generator=generator) for generator in parts])
    y = x @ torch.randn(16, 4, generator=torch.Generator().manual_seed(0))
    nn.functional.mse_loss(whole(x), y).backward()
    for a, b in zip(dst.permutations.states, other.permutations.states, strict=True):
        torch.testing.assert_close(a.signal, b.signal, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("stop", ["before", "scored", "stepped", "after"])
def test_going_on_is_bit_identical(stop):
    settings = {"delta_t": 2, "learned": LearnedPermutation(positions=6)}
    model, optimizer, dst = trio(**settings)
    train(model, optimizer, dst, range(1, 6))
    if stop in ("scored", "stepped"):
        backward(model, 6)
    if stop == "stepped":
        optimizer.step()
    if stop == "after":
        train(model, optimizer, dst, [6])
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict(), dst.state_dict()))
    gradients = [copy.deepcopy(p.grad) for p in model.parameters()]
    other, other_optimizer, other_dst = trio(**settings)
    for part, state in zip((other, other_optimizer, other_dst), saved, strict=True):
        part.load_state_dict(state)
    for parameter, gradient in zip(other.parameters(), gradients, strict=True):
        parameter.grad = gradient
    for part in ((model, optimizer, dst), (other, other_optimizer, other_dst)):
        if stop == "scored":
            part[1].step()
            part[1].zero_grad()
            part[2].step()
        if stop == "stepped":
            # What a loaded manager cannot know: its optimizer has stepped already.
            part[2]._optimizer_stepped = True
            part[1].zero_grad()
            part[2].step()
        train(*part, range(7, 14))
    assert same(model.state_dict(), other.state_dict())
    assert dst.last_update == other_dst.last_update


def test_a_copied_trio_goes_on_alike():
    original = trio(learned=LearnedPermutation(positions=6))
    train(*original, range(1, 6))
    backward(original[0], 6)
    others = copy.deepcopy(original)
    # Copies of parameters have no gradient.
    for one, other in zip(original[0].parameters(), others[0].parameters(), strict=True):
        other.grad = one.grad.clone()
    for part in (original, others):
        part[1].step()
        part[1].zero_grad()
        part[2].step()
        train(*part, range(7, 14))
    assert same(original[0].state_dict(), others[0].state_dict())
    lone = copy.deepcopy(original[0])
    assert all(not layer.signalling for layer in layers(lone))


def test_a_signal_that_is_not_finite_puts_the_update_off():
    model, optimizer, dst = trio("diag", "set")
    train(model, optimizer, dst, [1])
    backward(model, 2)
    dst.permutations.states[1].signal[0, 0] = torch.nan
    before = copy.deepcopy(model.state_dict())
    optimizer.param_groups[0]["lr"] = 0.0
    optimizer.step()
    optimizer.zero_grad()
    assert not dst.step()
    assert dst.put_off == 1 and same(model.state_dict(), before)
    assert train(model, optimizer, dst, [3])[0]


def test_a_step_that_the_optimizer_skips_is_forgotten():
    model, optimizer, dst = trio("diag", "set")
    train(model, optimizer, dst, [1])
    backward(model, 2)
    assert dst.permutations.states[0].signal is not None
    assert not dst.step()
    assert dst.permutations.states[0].signal is None
    assert train(model, optimizer, dst, [2]) == [True]


def test_a_layer_that_was_not_reached_stays():
    model, optimizer, dst = trio("diag", "set")
    before = model[0].perm.clone()
    train(model, optimizer, dst, [1])
    model[2](torch.randn(8, 32)).sum().backward()
    optimizer.step()
    assert dst.step()
    assert [p.name for p in dst.last_update.permutations] == ["2"]
    assert torch.equal(model[0].perm, before)


def test_after_t_end_and_close_permutations_stay():
    model, optimizer, dst = trio(t_end=4)
    train(model, optimizer, dst, range(1, 5))
    before = [layer.perm.clone() for layer in layers(model)]
    assert not any(train(model, optimizer, dst, range(5, 9)))
    assert all(torch.equal(m.perm, p) for m, p in zip(layers(model), before, strict=True))
    dst.close()
    assert all(not layer.signalling for layer in layers(model))


def test_a_checkpoint_keeps_the_kind(tmp_path):
    model, optimizer, dst = trio()
    train(model, optimizer, dst, range(1, 5))
    padst_fx.save(model, tmp_path / "model")
    fresh = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 16), nn.Linear(16, 4))
    loaded = padst_fx.load(fresh, tmp_path / "model")
    assert same(loaded.state_dict(), model.state_dict())
    assert all(layer.permutation == "learned" for layer in layers(loaded))


def test_dense_again_it_computes_the_same():
    model, optimizer, dst = trio(Block(4))
    train(model, optimizer, dst, range(1, 5))
    x = torch.randn(8, 16)
    expected = model(x)
    torch.testing.assert_close(padst_fx.densify(model)(x), expected)


def test_attention_learns_too():
    torch.manual_seed(0)
    model = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    padst_fx.sparsify(model, "diag", 0.75, permutation="learned")
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    dst = DST(model, optimizer, "set", delta_t=1, t_end=100)
    model(torch.randn(4, 5, 16)).square().mean().backward()
    optimizer.step()
    assert dst.step()
    assert len(dst.last_update.permutations) == 6


def test_a_state_of_other_permutations_is_refused():
    _, _, dst = trio()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 16), nn.Linear(16, 4))
    padst_fx.sparsify(model, "diag", 0.75, permutation="random")
    other = DST(model, torch.optim.SGD(model.parameters(), 0.1))
    with pytest.raises(ValueError, match="other layers have learned permutations"):
        other.load_state_dict(dst.state_dict())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"positions": 1}, "positions must be an integer of 2 or more, got 1"),
        ({"positions": 2.5}, "positions must be an integer"),
        ({"fraction": 0}, r"fraction must be in \(0, 1\], got 0"),
        ({"shrinkage": 1.5}, r"shrinkage must be in \(0, 1\], got 1.5"),
    ],
)
def test_settings_out_of_range(settings, message):
    with pytest.raises(ValueError, match=message):
        LearnedPermutation(**settings)


def test_the_curvature_is_seen_in_the_weights_at_their_new_places():
    layer = sparse_model()[0]
    state = PermutationState("0", layer)
    order = torch.arange(16)
    order[[1, 5, 9]] = torch.tensor([5, 9, 1])
    wanted = Wanted(torch.randn(32, 16), torch.ones(16), torch.zeros(32), torch.ones(16))
    state.expect(wanted, order, state.columns())
    trained, steepness = torch.randn_like(layer.values), 0.3
    with torch.no_grad():
        layer.values += trained
    now = wanted.change[:, order] - steepness * state.columns().dense(trained)
    state.observe(replace(wanted, change=now))
    assert state.curvature.value == pytest.approx(steepness, rel=1e-4)
    assert state.started is state.expected is None


def test_new_positions_forget_what_the_old_ones_expected():
    model = sparse_model()
    state = PermutationState("0", model[0])
    state.started = state.expected = torch.ones(4)
    state.arm(state.positions.clone())
    assert state.expected is not None
    state.arm(state.positions.flip(0))
    assert state.started is state.expected is None
    state.disarm()
