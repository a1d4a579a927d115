"""Autocast, loss scaling and pure half precision: scores, updates and slots."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

import padst_fx
from padst_fx import DST, NM, Block, Diag, SparseLinear, Unstructured
from padst_fx.dst.update import choose_units

STRUCTURES = ["diag", Diag(width=4), Block(4), NM(1, 4), Unstructured()]
HALVES = [torch.bfloat16, torch.float16]


def sparse_model(structure="diag", permutation="random", dtype=torch.float32):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 16), nn.Linear(16, 4))
    sparsity = None if isinstance(structure, NM) else 0.75
    return padst_fx.sparsify(model.to(dtype), structure, sparsity, permutation=permutation)


def batch(number, dtype=torch.float32):
    generator = torch.Generator().manual_seed(number)
    return torch.randn(8, 16, generator=generator).to(dtype)


def layers(model):
    return [m for m in model.modules() if isinstance(m, SparseLinear)]


def adamw(model, **options):
    return torch.optim.AdamW(model.parameters(), 1e-2, **options)


def scaled_step(model, optimizer, dst, scaler, dtype, number, factor=1.0, clip=True):
    with torch.autocast("cpu", dtype=dtype):
        y = model(batch(number))
    loss = (y.float() - batch(number)[:, :4]).square().mean() * factor
    scaler.scale(loss).backward()
    if clip:
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad()
    return dst.step()


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("permutation", ["random", "learned"])
@pytest.mark.parametrize("method", ["set", "rigl", "rigl_exact", "mest", "dynadiag"])
def test_a_loss_scale_changes_nothing(method, permutation, fused, clip):
    """In bfloat16, whose range is float32's, a power of two is exact: so is all that follows."""
    results = []
    for scale in (1.0, 1024.0):
        model = sparse_model("diag", permutation)
        optimizer = adamw(model, fused=fused)
        dst = DST(model, optimizer, method, delta_t=2, t_end=100, drop_fraction=0.5)
        scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=10**6)
        for number in range(8):
            scaled_step(model, optimizer, dst, scaler, torch.bfloat16, number, clip=clip)
        assert dst.last_update.step == 8 and dst.exploration > 0.3
        results.append((model.state_dict(), optimizer.state_dict()["state"]))
    torch.testing.assert_close(*results, rtol=0, atol=0)


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("optimizer_type", [torch.optim.AdamW, torch.optim.SGD])
@pytest.mark.parametrize("fused", [False, True])
def test_mest_scores_by_the_gradient_without_the_loss_scale(optimizer_type, fused, clip):
    """Fused optimizers divide it out in `step`, others before."""
    model = sparse_model()
    optimizer = optimizer_type(model.parameters(), lr=1e-2, fused=fused)
    dst = DST(model, optimizer, "mest", delta_t=1, t_end=100)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    reference = copy.deepcopy(model)
    y = reference(batch(0))
    (y - batch(0)[:, :4]).square().mean().backward()
    scaler.scale((model(batch(0)) - batch(0)[:, :4]).square().mean()).backward()
    if clip:
        scaler.unscale_(optimizer)
    scaler.step(optimizer)
    for state, plain in zip(dst.states, layers(reference), strict=True):
        expected = plain.pattern.unit_norms(plain.values.grad, plain.index)
        torch.testing.assert_close(state.gradient_norms, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("method", ["set", "rigl", "rigl_exact", "mest"])
def test_skipped_steps_do_not_count(method, fused, dtype):
    model = sparse_model()
    optimizer = adamw(model, fused=fused)
    dst = DST(model, optimizer, method, delta_t=2, t_end=100)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=10**6)
    changed = []
    for number, factor in enumerate((1.0, math.inf, 1.0, math.inf, math.inf, 1.0, 1.0)):
        before = copy.deepcopy(model.state_dict())
        changed.append(scaled_step(model, optimizer, dst, scaler, dtype, number, factor))
        if factor == math.inf:
            torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert changed == [False, False, True, False, False, False, True]
    assert (dst.steps, dst.put_off, scaler.get_scale()) == (4, 0, 1.0)
    assert all(int(optimizer.state[m.values]["step"]) == 4 for m in layers(model))


def dense_scores(layer, x, gradient):
    """Growth scores `[groups, candidates]` from the float64 dense gradient."""
    dense = gradient.double().t() @ x.double()
    dense = dense[:, layer.perm.long()] if layer.perm.numel() else dense
    return layer.pattern.unit_norms_of_dense(dense)


@pytest.mark.parametrize("permutation", ["identity", "random"])
@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("structure", STRUCTURES, ids=str)
def test_scores_under_autocast_are_the_dense_gradients_in_float32(structure, dtype, permutation):
    torch.manual_seed(0)
    sparsity = None if isinstance(structure, NM) else 0.75
    layer = SparseLinear(16, 32, structure, sparsity, permutation=permutation)
    model = nn.Sequential(layer)
    dst = DST(model, adamw(model), "rigl", delta_t=1, t_end=100)
    x, gradient = batch(0), torch.randn(8, 32).to(dtype)
    with torch.autocast("cpu", dtype=dtype):
        y = model(x)
    assert y.dtype == dtype and layer.values.dtype == torch.float32
    y.backward(gradient)
    assert layer.values.grad.dtype == torch.float32
    scores, ids = dst.states[0].growth_candidates()
    assert scores.dtype == torch.float32
    expected = dense_scores(layer, x.to(dtype), gradient).gather(1, ids.clamp(min=0))
    valid = scores >= 0
    torch.testing.assert_close(scores[valid], expected[valid].float(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("structure", STRUCTURES, ids=str)
def test_scores_of_half_precision_are_not_rounded_to_it(structure, dtype):
    torch.manual_seed(0)
    sparsity = None if isinstance(structure, NM) else 0.75
    layer = SparseLinear(16, 32, structure, sparsity, dtype=dtype)
    model = nn.Sequential(layer)
    dst = DST(model, adamw(model), "rigl", delta_t=1, t_end=100)
    x, gradient = batch(0, dtype), torch.randn(8, 32).to(dtype)
    model(x).backward(gradient)
    scores, ids = dst.states[0].growth_candidates()
    valid, expected = scores >= 0, dense_scores(layer, x, gradient).gather(1, ids.clamp(min=0))
    torch.testing.assert_close(scores[valid], expected[valid].float(), rtol=1e-5, atol=1e-6)
    dense = layer.pattern.dense(layer.values.detach().double(), layer.index)
    norms = layer.pattern.unit_norms_of_dense(dense)
    expected = norms.gather(1, layer.pattern.units_from_index(layer.index))
    torch.testing.assert_close(dst.states[0].magnitudes(), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("method", ["set", "rigl", "rigl_exact", "mest"])
@pytest.mark.parametrize("structure", STRUCTURES, ids=str)
def test_a_model_in_half_precision_updates_as_float64_says(structure, method, dtype):
    """Values and slots are of the dtype; units are chosen by scores without its rounding."""
    torch.manual_seed(0)
    sparsity = None if isinstance(structure, NM) else 0.75
    layer = SparseLinear(16, 32, structure, sparsity, permutation="random", dtype=dtype)
    model = nn.Sequential(layer)
    # The default eps is zero in float16.
    optimizer = adamw(model, weight_decay=0.0, eps=1e-4)
    dst = DST(model, optimizer, method, delta_t=2, t_end=10**6, drop_fraction=0.5, seed=3)
    random = torch.Generator().manual_seed(3)
    for number in range(4):
        x, gradient = batch(number, dtype), torch.randn(8, 32).to(dtype)
        model(x).backward(gradient)
        optimizer.step()
        slots = optimizer.state[layer.values]
        before = {
            key: layer.pattern.dense(tensor.detach().clone(), layer.index)
            for key, tensor in {"values": layer.values, **slots}.items()
            if tensor.shape == layer.values.shape
        }
        old = layer.pattern.units_from_index(layer.index)
        drop = layer.pattern.unit_norms_of_dense(before["values"].double()).gather(1, old)
        if method == "mest":
            gradients = layer.pattern.dense(layer.values.grad.double(), layer.index)
            drop = drop + layer.pattern.unit_norms_of_dense(gradients).gather(1, old)
        growth = dense_scores(layer, x, gradient)
        if method in ("set", "mest") and number % 2:
            growth = torch.rand(growth.shape, generator=random)
        growth.masked_fill_(~layer.pattern.available(), -1.0)
        ids = torch.arange(growth.shape[1]).expand_as(growth)
        expected = choose_units(old, drop, ids, growth, round(0.5 * old.numel())).units
        optimizer.zero_grad()
        assert dst.step() == bool(number % 2)
        if not number % 2:
            continue
        new = layer.pattern.units_from_index(layer.index)
        assert torch.equal(new, expected)
        kept = layer.pattern.mask(layer.index)
        for key, dense in before.items():
            tensor = {"values": layer.values.detach(), **slots}[key]
            assert tensor.dtype == dtype
            assert torch.equal(layer.pattern.dense(tensor, layer.index), dense * kept), key


def test_adam_with_an_eps_that_is_zero_in_float16_puts_updates_off_and_says_so(caplog):
    """A weight whose gradient is zero becomes 0 / 0, as in a dense model."""
    model = nn.Sequential(SparseLinear(16, 32, Unstructured(), 0.75, dtype=torch.float16))
    optimizer = adamw(model)
    dst = DST(model, optimizer, "rigl", delta_t=1, t_end=100)
    for number in range(3):
        model(batch(number, torch.float16)).sum().backward()
        optimizer.step()
        assert dst.step() == (number == 0)
    assert dst.put_off == 2 and "non-finite scores in 0" in caplog.text


COMPILED = [
    ("diag", torch.float32),
    ("diag", torch.bfloat16),
    (NM(1, 4), torch.float32),
    (Block(4), torch.bfloat16),
]


@pytest.mark.parametrize(("structure", "dtype"), COMPILED, ids=str)
def test_compiled_models_in_bfloat16(structure, dtype):
    """Under autocast where parameters are float32; gradients as eagerly, and two graphs."""
    torch._dynamo.reset()
    counters.clear()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4)).to(dtype)
    sparsity = None if isinstance(structure, NM) else 0.75
    padst_fx.sparsify(model, structure, sparsity, permutation="random")
    twin = copy.deepcopy(model)
    optimizer = torch.optim.SGD(model.parameters(), 1e-2, momentum=0.9)
    dst = DST(model, optimizer, "rigl", delta_t=3, t_end=100, drop_fraction=0.5)
    options = {"inner": "aot_eager"}
    compiled = torch.compile(model, backend="padst", options=options, fullgraph=True)
    for number in range(7):
        twin.load_state_dict(model.state_dict())
        twin.zero_grad()
        for network in (compiled, twin):
            with torch.autocast("cpu", torch.bfloat16, enabled=dtype is torch.float32):
                y = network(batch(number, dtype))
            assert y.dtype == torch.bfloat16
            y.float().square().mean().backward()
        for ours, other in zip(model.parameters(), twin.parameters(), strict=True):
            assert ours.grad.dtype == dtype
            error = (ours.grad.double() - other.grad.double()).norm()
            assert error <= 0.02 * other.grad.double().norm() + 1e-6
        optimizer.step()
        optimizer.zero_grad()
        assert dst.step() == (number % 3 == 2)
    assert counters["stats"]["unique_graphs"] == 2
