"""SparseLinear against the dense computation with the effective weight, in float64."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from padst_fx.layers import SparseLinear
from padst_fx.structures import NM, Block, Diag, StructureError, Unstructured

CASES = [
    (Diag(), 24, 24, 0.8),
    (Diag(), 37, 53, 0.9),
    (Diag(), 53, 37, 0.9),
    (Diag(run=4), 24, 40, 0.7),
    (Diag(width=4), 24, 24, 0.5),
    (Diag(width=4), 24, 40, 0.6),
    (Diag(width=4, run=2), 48, 24, 0.6),
    (Diag(width=8), 64, 16, 0.9),
    (Block(size=4), 24, 40, 0.7),
    (Block(size=8), 64, 16, 0.5),
    (NM(), 21, 53, 0.9),
    (NM(2, 4), 24, 40, 0.5),
    (NM(2, 5, tile=3), 24, 42, 0.6),
    (NM(2, 5), 25, 10, 0.6),
    (NM(1, 300), 600, 5, 1 - 1 / 300),
    (Unstructured(), 19, 31, 0.9),
]


def sparse_layer(
    structure, in_features, out_features, sparsity, *, permutation="random", bias=True
) -> SparseLinear:
    torch.manual_seed(0)
    return SparseLinear(
        in_features,
        out_features,
        structure,
        sparsity,
        bias=bias,
        permutation=permutation,
        dtype=torch.float64,
    )


@pytest.mark.parametrize("leading", [(7,), (2, 3), (), (0,), (2, 1, 3)])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_forward_and_gradients_equal_dense(case, leading):
    structure, in_features, out_features, sparsity = case
    layer = sparse_layer(structure, in_features, out_features, sparsity)
    x = torch.randn(*leading, in_features, dtype=torch.float64, requires_grad=True)
    cotangent = torch.randn(*leading, out_features, dtype=torch.float64)
    y = layer(x)
    y.backward(cotangent)

    weight = layer.dense_weight().requires_grad_()
    bias = layer.bias.detach().clone().requires_grad_()
    x_dense = x.detach().clone().requires_grad_()
    y_dense = F.linear(x_dense, weight, bias)
    y_dense.backward(cotangent)
    torch.testing.assert_close(y, y_dense)
    torch.testing.assert_close(x.grad, x_dense.grad)
    torch.testing.assert_close(layer.bias.grad, bias.grad)
    structured = weight.grad[:, layer.perm.long()]
    expected = layer.pattern.values_from_dense(structured, layer.index)
    torch.testing.assert_close(layer.values.grad, expected)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_mask_is_in_the_structure_with_the_planned_count(case):
    structure, in_features, out_features, sparsity = case
    layer = sparse_layer(structure, in_features, out_features, sparsity)
    mask = layer.pattern.mask(layer.index)
    assert mask.sum() == layer.pattern.nonzeros
    assert sorted(layer.perm.tolist()) == list(range(in_features))
    assert (layer.dense_weight() != 0).sum() == layer.pattern.nonzeros


@pytest.mark.parametrize("case", CASES, ids=str)
def test_to_dense_computes_the_same(case):
    structure, in_features, out_features, sparsity = case
    layer = sparse_layer(structure, in_features, out_features, sparsity)
    x = torch.randn(5, in_features, dtype=torch.float64)
    dense = layer.to_dense()
    assert type(dense) is nn.Linear
    torch.testing.assert_close(dense(x), layer(x))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_from_dense_keeps_every_weight_at_full_density(case):
    structure, in_features, out_features, _ = case
    if isinstance(structure, NM) and structure.n is not None:
        structure = NM(in_features, in_features, structure.tile)
    linear = nn.Linear(in_features, out_features, dtype=torch.float64)
    layer = SparseLinear.from_dense(linear, structure, 0.0, permutation="random")
    x = torch.randn(5, in_features, dtype=torch.float64)
    torch.testing.assert_close(layer(x), linear(x))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_from_dense_keeps_the_strongest_units(case):
    structure, in_features, out_features, sparsity = case
    linear = nn.Linear(in_features, out_features, dtype=torch.float64)
    layer = SparseLinear.from_dense(linear, structure, sparsity)
    pattern = layer.pattern
    norms = pattern.unit_norms_of_dense(linear.weight.detach())
    norms = norms.masked_fill(~pattern.available(), -1)
    units = pattern.units_from_index(layer.index)
    kept = norms.gather(1, units)
    dropped = norms.scatter(1, units, -torch.inf)
    assert (kept.amin(1) >= dropped.amax(1)).all()
    torch.testing.assert_close(
        layer.dense_weight(), linear.weight.detach() * pattern.mask(layer.index)
    )


@pytest.mark.parametrize("case", CASES, ids=str)
def test_units_survive_the_round_trip_through_the_index(case):
    structure, in_features, out_features, sparsity = case
    pattern = structure.bind(out_features, in_features, sparsity)
    units = pattern.random_units()
    torch.testing.assert_close(pattern.units_from_index(pattern.index_from_units(units)), units)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_probe_gradient_is_the_norm_of_the_dense_gradient(case):
    structure, in_features, out_features, sparsity = case
    layer = sparse_layer(structure, in_features, out_features, sparsity)
    layer.ask_for_scores()
    x = torch.randn(4, 3, in_features, dtype=torch.float64)
    cotangent = torch.randn(4, 3, out_features, dtype=torch.float64)
    plain = copy.deepcopy(layer)
    plain.ask_for_scores(False)
    y = layer(x)
    torch.testing.assert_close(y, plain(x))
    y.backward(cotangent)
    plain(x).backward(cotangent)
    torch.testing.assert_close(layer.values.grad, plain.values.grad)

    gradient = cotangent.flatten(0, 1).t() @ x.flatten(0, 1)[:, layer.perm.long()]
    scores, ids = layer.pattern.growth_candidates(layer.probe.grad)
    norms = layer.pattern.unit_norms_of_dense(gradient).double()
    valid = scores >= 0
    torch.testing.assert_close(
        scores[valid], norms.gather(1, ids)[valid], rtol=1e-5, atol=1e-5
    )


def test_dtype_and_device_moves_keep_the_probe_on_one_element():
    layer = sparse_layer(Block(size=4), 24, 40, 0.7).to(torch.float32)
    assert layer.probe.shape == layer.pattern.probe_shape
    assert layer.probe.untyped_storage().nbytes() == 4
    assert "probe" not in layer.state_dict()


def test_state_dict_keys_are_stable():
    layer = SparseLinear(24, 24, "diag", 0.5)
    assert list(layer.state_dict()) == ["values", "bias", "index", "perm"]


def test_wrong_width_names_both_numbers():
    with pytest.raises(ValueError, match=r"24 features.*\(3, 25\)"):
        SparseLinear(24, 24, "diag", 0.5)(torch.randn(3, 25))


@pytest.mark.parametrize(
    ("structure", "sparsity", "message"),
    [
        ("diagonal", 0.9, "unknown structure 'diagonal'; valid: 'diag', 'block'"),
        ("diag", 1.0, r"sparsity must be in \[0, 1\), got 1.0"),
        ("diag", -0.1, r"sparsity must be in \[0, 1\)"),
        ("diag", float("nan"), r"sparsity must be in \[0, 1\)"),
        ("diag", None, "sparsity must be a number"),
        (Block(size=5), 0.9, r"Block\(size=5\) does not divide out=24"),
        ("2:4", 0.9, r"NM\(2, 4\) is 0.5 sparse, but sparsity=0.9"),
    ],
)
def test_bad_input(structure, sparsity, message):
    with pytest.raises(ValueError, match=message):
        SparseLinear(24, 24, structure, sparsity)


def test_bad_permutation_lists_the_valid_ones():
    with pytest.raises(ValueError, match="unknown permutation 'shuffle'; valid: 'identity'"):
        SparseLinear(24, 24, "diag", 0.5, permutation="shuffle")


@pytest.mark.parametrize("make", [lambda: Diag(width=0), lambda: NM(4, 2), lambda: NM(n=2)])
def test_bad_structure_parameters(make):
    with pytest.raises(StructureError):
        make()


def test_a_state_brings_dynadiags_scores_with_it():
    source, layer = (SparseLinear(24, 24, "diag", 0.5) for _ in range(2))
    source.enable_scores()
    with torch.no_grad():
        source.alpha.uniform_()
    layer.load_state_dict(source.state_dict())
    x = torch.randn(3, 24)
    torch.testing.assert_close(layer(x), source(x), rtol=0, atol=0)
    with pytest.raises(RuntimeError, match="alpha"):
        SparseLinear(24, 24, Block(4), 0.5).load_state_dict(source.state_dict())


@pytest.mark.parametrize("bias", [True, False])
def test_a_layer_made_on_meta_takes_a_state_dict(bias):
    source = SparseLinear(24, 24, "diag", 0.5, bias=bias)
    layer = SparseLinear(24, 24, "diag", 0.5, bias=bias, device="meta")
    layer.load_state_dict(source.state_dict(), assign=True)
    x = torch.randn(3, 24)
    assert torch.equal(layer(x), source(x))
    layer.ask_for_scores()
    layer(x).sum().backward()
    assert layer.probe.grad.device.type == "cpu"


@pytest.mark.parametrize("structure", ["diag", Diag(width=4), Block(4), NM(), Unstructured()])
def test_an_input_of_another_dtype_is_refused(structure):
    layer = SparseLinear(24, 24, structure, 0.5)
    with pytest.raises(RuntimeError, match="dtype"):
        layer(torch.randn(3, 24, dtype=torch.float64))
