"""A SparseLinear with a soft permutation, before and after it is hardened."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import padst_fx
from padst_fx import NM, Block, Diag, SparseLinear, Unstructured
from padst_fx.soft_permutation import project_

CASES = [
    (Diag(), 24, 24, 0.8),
    (Diag(), 37, 53, 0.9),
    (Diag(run=4), 24, 40, 0.7),
    (Diag(width=4), 24, 24, 0.5),
    (Diag(width=8), 64, 16, 0.9),
    (Block(size=4), 24, 40, 0.7),
    (NM(), 21, 53, 0.9),
    (NM(2, 5, tile=3), 24, 42, 0.6),
    (Unstructured(), 19, 31, 0.9),
]


def soft_layer(structure="diag", in_features=16, out_features=24, sparsity=0.5) -> SparseLinear:
    """A layer whose matrix is far from a permutation, and trained."""
    torch.manual_seed(0)
    layer = SparseLinear(
        in_features, out_features, structure, sparsity, permutation="soft", dtype=torch.float64
    )
    with torch.no_grad():
        project_(layer.soft_perm.uniform_(), 3)
    layer.soft_perm.requires_grad_(True)
    return layer


@pytest.mark.parametrize("case", CASES, ids=str)
def test_forward_and_gradients_equal_dense(case):
    layer = soft_layer(*case[:3], case[3])
    x = torch.randn(2, 3, layer.in_features, dtype=torch.float64, requires_grad=True)
    y = layer(x)
    cotangent = torch.randn_like(y)
    y.backward(cotangent)
    values, matrix, bias = (
        p.detach().clone().requires_grad_() for p in (layer.values, layer.soft_perm, layer.bias)
    )
    inputs = x.detach().clone().requires_grad_()
    weight = layer.pattern.dense(values, layer.index) @ matrix
    expected = F.linear(inputs, weight, bias)
    expected.backward(cotangent)
    torch.testing.assert_close(layer.dense_weight(), weight.detach())
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(x.grad, inputs.grad)
    pairs = ((layer.values, values), (layer.soft_perm, matrix), (layer.bias, bias))
    for own, other in pairs:
        torch.testing.assert_close(own.grad, other.grad)


@pytest.mark.parametrize("case", [c for c in CASES if not isinstance(c[0], NM)], ids=str)
def test_growth_scores_are_of_the_inputs_that_the_structure_sees(case):
    layer = soft_layer(*case[:3], case[3])
    layer.ask_for_scores()
    x = torch.randn(6, layer.in_features, dtype=torch.float64)
    y = layer(x)
    cotangent = torch.randn_like(y)
    y.backward(cotangent)
    gradient = cotangent.t() @ (x @ layer.soft_perm.detach().t())
    expected = layer.pattern.unit_norms_of_dense(gradient)
    found, _ = layer.pattern.growth_candidates(layer.probe.grad)
    torch.testing.assert_close(found, expected.to(found.dtype), rtol=1e-5, atol=1e-6)


def test_growth_scores_of_nm_are_of_the_inputs_that_the_structure_sees():
    soft = soft_layer(NM(2, 5, tile=3), 24, 42, 0.6)
    x = torch.randn(6, 24, dtype=torch.float64)
    plain = SparseLinear(24, 42, soft.pattern, dtype=torch.float64)
    plain.load_state_dict(
        {n: t for n, t in soft.state_dict().items() if n != "soft_perm"}
        | {"perm": torch.empty(0, dtype=torch.int32)}
    )
    seen = x @ soft.soft_perm.detach().t()
    for layer, inputs in ((soft, x), (plain, seen)):
        layer.ask_for_scores()
        layer(inputs).square().sum().backward()
    torch.testing.assert_close(soft.probe.grad, plain.probe.grad)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_hardened_layer_is_a_plain_permuted_one(case):
    layer = soft_layer(*case[:3], case[3])
    perm = torch.randperm(layer.in_features).int()
    address = layer.perm.data_ptr()
    layer.harden(perm)
    assert layer.soft_perm is None
    assert layer.perm.data_ptr() == address
    assert "soft_perm" not in layer.state_dict()
    other = SparseLinear(
        layer.in_features, layer.out_features, layer.pattern,
        permutation="random", dtype=torch.float64,
    )  # fmt: skip
    other.load_state_dict(layer.state_dict())
    x = torch.randn(5, layer.in_features, dtype=torch.float64)
    assert torch.equal(layer(x), other(x))
    torch.testing.assert_close(layer(x), F.linear(x, layer.dense_weight(), layer.bias))


def test_a_matrix_that_is_a_permutation_computes_what_its_index_does():
    layer = soft_layer()
    perm = torch.randperm(16)
    with torch.no_grad():
        layer.soft_perm.copy_(torch.eye(16, dtype=torch.float64)[perm])
    x = torch.randn(5, 16, dtype=torch.float64)
    before, weight = layer(x), layer.dense_weight()
    layer.harden(perm.int())
    torch.testing.assert_close(layer(x), before)
    torch.testing.assert_close(layer.dense_weight(), weight)


@pytest.mark.parametrize(
    "perm", [torch.zeros(16), torch.arange(15), torch.arange(16) + 1, torch.arange(17)]
)
def test_only_permutations_harden(perm):
    layer = soft_layer()
    before = layer.perm.clone()
    with pytest.raises(ValueError, match="not a permutation of 16 inputs"):
        layer.harden(perm.int())
    assert layer.soft_perm is not None
    assert torch.equal(layer.perm, before)


def test_it_starts_near_the_identity_and_asks_for_no_gradient():
    layer = SparseLinear(16, 24, "diag", 0.5, permutation="soft")
    assert layer.perm.tolist() == list(range(16))
    assert not layer.soft_perm.requires_grad
    assert layer.soft_perm.argmax(1).tolist() == list(range(16))
    names = [name for name, _ in layer.named_parameters()]
    assert sorted(names) == ["bias", "soft_perm", "values"]
    assert "permutation=soft" in repr(layer)
    layer.harden(layer.perm)
    assert "permutation=soft, hardened" in repr(layer)


def test_another_kind_has_no_matrix():
    layer = SparseLinear(16, 24, "diag", 0.5, permutation="random")
    assert layer.soft_perm is None
    with pytest.raises(ValueError, match="only a soft permutation has a matrix, got 'random'"):
        layer.soften()


def test_states_of_both_kinds_load_into_both():
    soft, hard = soft_layer(), soft_layer()
    hard.harden(torch.randperm(16).int())
    states = [copy.deepcopy(layer.state_dict()) for layer in (soft, hard)]
    x = torch.randn(5, 16, dtype=torch.float64)
    outputs = [layer(x) for layer in (soft, hard)]
    for layer in (soft, hard):
        for state, output in zip(states, outputs, strict=True):
            layer.load_state_dict(state)
            assert torch.equal(layer(x), output)
            assert layer.state_dict().keys() == state.keys()


def test_a_copy_is_its_own():
    layer = soft_layer()
    other = copy.deepcopy(layer)
    layer.harden(torch.randperm(16).int())
    assert other.soft_perm is not None
    assert other.soft_perm.requires_grad
    assert other.perm.tolist() == list(range(16))


def test_autocast_mixes_in_its_own_dtype():
    layer = soft_layer(Block(8), 32, 48).float()
    layer.ask_for_scores()
    x = torch.randn(5, 32)
    expected = layer(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(x)
        y.float().sum().backward()
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), expected, rtol=0.05, atol=0.05)
    assert layer.soft_perm.grad.dtype == torch.float32
    assert layer.probe.grad is not None


@pytest.mark.parametrize("hard", [False, True])
def test_densify_and_summary_of_a_model_with_attention(hard):
    torch.manual_seed(0)
    model = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True, dropout=0.0).eval()
    padst_fx.sparsify(model, "diag", 0.5, permutation="soft")
    layers = [m for m in model.modules() if isinstance(m, SparseLinear)]
    assert len(layers) == 6
    for layer in layers:
        with torch.no_grad():
            project_(layer.soft_perm.uniform_(), 3)
        if hard:
            layer.harden(torch.randperm(layer.in_features).int())
    rows = padst_fx.summary(model, tokens=10).rows
    assert {row.permutation for row in rows} == {"soft, hardened" if hard else "soft"}
    x = torch.randn(2, 5, 16)
    before = model(x)
    padst_fx.densify(model)
    assert type(model.self_attn) is nn.MultiheadAttention
    torch.testing.assert_close(model(x), before, rtol=1e-4, atol=1e-5)


def test_the_plan_shows_it_and_the_summary_counts_the_product():
    def build():
        return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 4))

    assert "permutation: soft" in str(padst_fx.plan(build(), "diag", 0.9, permutation="soft"))
    costs = {}
    for kind in ("random", "soft"):
        model = padst_fx.sparsify(build(), "diag", 0.9, permutation=kind)
        costs[kind] = padst_fx.summary(model, tokens=64).rows[0]
    assert costs["soft"].parameters == costs["random"].parameters + 64 * 64
    assert costs["soft"].cost.sparse.seconds > costs["random"].cost.sparse.seconds


def test_it_can_be_built_without_memory():
    layer = SparseLinear(16, 24, "diag", 0.5, permutation="soft", device="meta")
    assert layer.soft_perm.is_meta
    layer.to_empty(device="cpu").reset_parameters()
    assert layer.soft_perm.argmax(1).tolist() == list(range(16))
