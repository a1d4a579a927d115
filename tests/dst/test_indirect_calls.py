"""Forwards that are run twice or with other tensors: checkpointing, functional calls, copies."""

from __future__ import annotations

import copy

import pytest
import torch
from small_models import STRUCTURES, smooth_model
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.utils.checkpoint import checkpoint

import padst_fx
from padst_fx import DST, Diag, SparseLinear, Unstructured


def managed(structure, method, permutation="learned"):
    model = smooth_model(structure, permutation)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    return model, optimizer, DST(model, optimizer, method, delta_t=2, t_end=100)


def batch(number):
    generator = torch.Generator().manual_seed(number)
    return torch.randn(8, 16, generator=generator, dtype=torch.float64)


def collected(dst):
    growth = [state.growth for state in dst.states]
    return growth + [state.signal for state in dst.permutations.states]


CASES = [(s, m) for s in STRUCTURES for m in ("rigl", "rigl_exact", "mest")]
CASES += [("diag", "dynadiag"), (Diag(width=4), "dynadiag")]


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize(("structure", "method"), CASES, ids=str)
def test_recomputed_activations_score_once(structure, method, use_reentrant):
    model, optimizer, dst = managed(structure, method)
    other, other_optimizer, plain = managed(structure, method)
    for number in range(4):
        x = batch(number).requires_grad_()
        checkpoint(model, x, use_reentrant=use_reentrant).square().mean().backward()
        other(batch(number)).square().mean().backward()
        for found, expected in zip(collected(dst), collected(plain), strict=True):
            assert (found is None) == (expected is None)
            if found is not None:
                assert torch.equal(found, expected)
        for held in (optimizer, other_optimizer):
            held.step()
            held.zero_grad()
        assert dst.step() == plain.step() == (number % 2 == 1)
    torch.testing.assert_close(model.state_dict(), other.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("structure", STRUCTURES, ids=str)
def test_functional_calls_compute_with_the_tensors_given(structure):
    model = smooth_model(structure, "random")
    torch.manual_seed(1)
    other = copy.deepcopy(model)
    for layer in (m for m in other.modules() if isinstance(m, SparseLinear)):
        layer.reset_parameters()
    before = copy.deepcopy(model.state_dict())
    x = batch(0)
    expected = padst_fx.densify(copy.deepcopy(other))(x)
    tensors = {**dict(other.named_parameters()), **dict(other.named_buffers())}
    torch.testing.assert_close(functional_call(model, tensors, (x,)), expected)
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)

    parameters = {n: p.detach().requires_grad_() for n, p in other.named_parameters()}
    buffers = dict(other.named_buffers())
    loss = functional_call(model, (parameters, buffers), (x,)).square().mean()
    found = torch.autograd.grad(loss, list(parameters.values()))
    other(x).square().mean().backward()
    for gradient, parameter in zip(found, other.parameters(), strict=True):
        torch.testing.assert_close(gradient, parameter.grad, rtol=1e-9, atol=1e-12)


def test_gradients_asked_for_by_name_leave_no_scores():
    model, optimizer, dst = managed("diag", "rigl")
    optimizer.step()
    dst.step()
    assert all(state.layer.scoring for state in dst.states)
    parameters = {name: p.detach().requires_grad_() for name, p in model.named_parameters()}
    loss = functional_call(model, parameters, (batch(0),)).square().mean()
    torch.autograd.grad(loss, list(parameters.values()))
    assert all(scores is None for scores in collected(dst))


@pytest.mark.parametrize("structure", STRUCTURES, ids=str)
def test_vmap_computes_as_a_batch_does_and_transforms_with_gradients_are_refused(structure):
    model = smooth_model(structure, "random")
    x = batch(0)
    torch.testing.assert_close(vmap(model)(x), model(x))
    if not isinstance(structure, Unstructured):  # Computed by torch's own operators.
        with pytest.raises(RuntimeError, match=r"cannot use .* with functorch transforms"):
            grad(lambda x: model(x).square().mean())(x)


def test_copies_of_the_model_give_no_scores_and_take_another_dst():
    model, optimizer, dst = managed("diag", "rigl")
    optimizer.step()
    dst.step()
    for other in (copy.deepcopy(model), copy.deepcopy(nn.ModuleList([model]))[0]):
        other(batch(0)).square().mean().backward()
        assert all(scores is None for scores in collected(dst))
        held = torch.optim.SGD(other.parameters(), 0.1)
        second = DST(other, held, "rigl", delta_t=1, t_end=100)
        before = copy.deepcopy(model.state_dict())
        other(batch(0)).square().mean().backward()
        held.step()
        assert second.step()
        assert all(scores is None for scores in collected(dst))
        torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    model(batch(0)).square().mean().backward()
    assert all(scores is not None for scores in collected(dst))
