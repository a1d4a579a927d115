"""FuseBias: one added row becomes the projection's bias, and nothing else does."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from pass_backend import compile_with
from sparse_layers import OPS, dense_output, sparse_layer, with_activation
from torch import Tensor

from padst_fx.passes.fuse_bias import FuseBias

aten = torch.ops.aten

FUSED = {
    "vector": lambda y, b: y + b,
    "swapped": lambda y, b: b + y,
    "row": lambda y, b: y + b.view(1, 1, -1),
    "unsqueezed": lambda y, b: y + b.unsqueeze(0),
    "expanded": lambda y, b: torch.add(b.expand(y.shape), y),
    "row expanded": lambda y, b: y + b[None, :].expand(y.shape[1], -1),
}


def random(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("op", OPS)
@torch.no_grad()
def test_a_row_becomes_the_bias_in_every_form(op):
    layer, x, bias = sparse_layer(op), random(2, 5, 16), random(24)
    expected = dense_output(layer, x) + bias
    for form, add in FUSED.items():
        compiled, backend = compile_with(lambda x, b, add=add: add(layer(x), b), FuseBias())
        torch.testing.assert_close(compiled(x, bias), expected, rtol=1e-12, atol=1e-12)
        assert backend.counts == {"fuse_bias": 1}, form
        (projection,) = backend.projections_after()
        assert projection.target._schema.name == f"padst::{op}"
        assert aten.add.Tensor in backend.ops_before()
        assert aten.add.Tensor not in backend.ops_after()
        assert tuple(projection.args[4].meta["val"].shape) == (24,)


@torch.no_grad()
def test_nothing_but_the_op_is_left():
    layer, x, bias = sparse_layer("shift"), random(3, 16), random(24)
    compiled, backend = compile_with(lambda x, b: layer(x) + b.expand(3, 24), FuseBias())
    compiled(x, bias)
    assert backend.ops_after() == [torch.ops.padst.shift.default]


@torch.no_grad()
def test_the_new_node_knows_its_shape_and_its_source_line():
    layer, x, bias = sparse_layer("shift"), random(3, 16), random(24)
    compiled, backend = compile_with(lambda x, b: layer(x) + b, FuseBias())
    compiled(x, bias)
    (projection,) = backend.projections_after()
    value = projection.meta["val"]
    assert (tuple(value.shape), value.dtype) == ((3, 24), torch.float64)
    assert isinstance(value, torch._subclasses.FakeTensor)
    assert "linear.py" in projection.meta["stack_trace"]


# An operand, and a sum of it and a projection of x that is no bias, or cannot be one here.
KEPT = {
    "two users": (random(24), lambda f, x, b: (y := f(x)) + b + y.sum()),
    "the projection is returned": (random(24), lambda f, x, b: ((y := f(x)) + b, y)),
    "alpha": (random(24), lambda f, x, b: torch.add(f(x), b, alpha=2)),
    "a residual": (random(24, 24), lambda f, x, b: f(x) + b),
    "a column": (random(24, 1), lambda f, x, b: f(x) + b),
    "a scalar": (random(24), lambda f, x, b: f(x) + 1.5),
    "one number": (random(1), lambda f, x, b: f(x) + b),
    "a single sample plus many": (random(5, 24), lambda f, x, b: f(x[:1]) + b),
    "a vector plus many": (random(5, 24), lambda f, x, b: f(x[0]) + b),
    "a vector plus a row": (random(1, 24), lambda f, x, b: f(x[0]) + b),
    "a vector plus itself": (random(24), lambda f, x, b: (y := f(x[0])) + y),
    "another dtype": (random(24, dtype=torch.float32), lambda f, x, b: f(x) + b),
    "an integer row": (torch.arange(24), lambda f, x, b: f(x) + b),
    "a strided row": (random(24, 2)[:, 0], lambda f, x, b: f(x) + b),
    "an activation first": (random(24), lambda f, x, b: F.relu(f(x)) + b),
    "a fused activation first": (random(24), lambda f, x, b: with_activation(f, x, "relu") + b),
    "a difference": (random(24), lambda f, x, b: f(x) - b),
}


@pytest.mark.parametrize("name", KEPT)
@torch.no_grad()
def test_what_is_no_bias_stays(name):
    operand, function = KEPT[name]
    layer, x = sparse_layer("shift"), random(24, 16)
    compiled, backend = compile_with(lambda x, b: function(layer, x, b), FuseBias())
    expected = function(layer, x, operand)
    torch.testing.assert_close(compiled(x, operand), expected, rtol=1e-12, atol=1e-12)
    assert backend.counts == {"fuse_bias": 0}
    assert backend.ops_after() == backend.ops_before()


@torch.no_grad()
def test_a_projection_with_a_bias_takes_no_other():
    layer, x, bias = sparse_layer("shift", bias=True), random(3, 16), random(24)
    compiled, backend = compile_with(lambda x, b: layer(x) + b, FuseBias())
    expected = dense_output(layer, x) + bias
    torch.testing.assert_close(compiled(x, bias), expected, rtol=1e-12, atol=1e-12)
    assert backend.counts == {"fuse_bias": 0}


@torch.no_grad()
def test_the_second_of_two_rows_stays_an_addition():
    layer, x, bias = sparse_layer("shift"), random(3, 16), random(24)
    compiled, backend = compile_with(lambda x, b: layer(x) + b + 2 * b, FuseBias())
    expected = dense_output(layer, x) + 3 * bias
    torch.testing.assert_close(compiled(x, bias), expected, rtol=1e-12, atol=1e-12)
    assert backend.counts == {"fuse_bias": 1}
    assert backend.ops_after().count(aten.add.Tensor) == 1


@torch.no_grad()
def test_any_number_of_tokens():
    layer, bias = sparse_layer("gather_gemm"), random(24)
    compiled, backend = compile_with(lambda x, b: layer(x) + b, FuseBias())
    x = random(2, 5, 16)
    torch._dynamo.mark_dynamic(x, 1)
    for tokens in (x, random(2, 9, 16)):
        expected = dense_output(layer, tokens) + bias
        torch.testing.assert_close(compiled(tokens, bias), expected, rtol=1e-12, atol=1e-12)
    assert backend.counts == {"fuse_bias": 1}
    assert len(backend.graphs) == 1


@pytest.mark.parametrize("op", OPS)
def test_gradients_through_a_fused_bias(op):
    layer, x = sparse_layer(op), random(6, 16).requires_grad_()
    bias, weight = random(24).requires_grad_(), random(6, 24) + 1
    compiled, backend = compile_with(lambda x, b: F.relu(layer(x) + b) * weight, FuseBias())
    compiled(x, bias).sum().backward()
    assert backend.manager.reports[0].counts == {"fuse_bias": 1}

    dense = layer.dense_weight().requires_grad_()
    x_ref, bias_ref = (t.detach().clone().requires_grad_() for t in (x, bias))
    (F.relu(F.linear(x_ref, dense, bias_ref)) * weight).sum().backward()
    torch.testing.assert_close(x.grad, x_ref.grad, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(bias.grad, bias_ref.grad, rtol=1e-11, atol=1e-11)
    rows, columns = layer.pattern.coordinates(layer.index)
    values_grad = dense.grad[rows, layer.perm.long()[columns]]
    torch.testing.assert_close(layer.values.grad, values_grad, rtol=1e-11, atol=1e-11)
