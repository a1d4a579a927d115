"""FuseActivation: the four activations, however they are written, and nothing else."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from pass_backend import compile_with
from sparse_layers import OPS, dense_output, sparse_layer, with_activation
from torch import Tensor

from padst_fx.passes.expression import Expression
from padst_fx.passes.fuse_activation import FuseActivation
from padst_fx.passes.fuse_bias import FuseBias


def gelu_tanh(y: Tensor) -> Tensor:
    return F.gelu(y, approximate="tanh")


def new_gelu(y: Tensor) -> Tensor:
    """As transformers.activations.NewGELUActivation writes it."""
    inner = math.sqrt(2.0 / math.pi) * (y + 0.044715 * torch.pow(y, 3.0))
    return 0.5 * y * (1.0 + torch.tanh(inner))


FUSED = {
    "relu": ("relu", F.relu),
    "gelu": ("gelu", F.gelu),
    "gelu tanh": ("gelu_tanh", gelu_tanh),
    "gelu tanh written out": ("gelu_tanh", new_gelu),
    "silu": ("silu", F.silu),
    "silu written out": ("silu", lambda y: y * torch.sigmoid(y)),
    "silu swapped": ("silu", lambda y: torch.sigmoid(y) * y),
}


def random(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return (2 * torch.randn(*shape, dtype=torch.float64, generator=generator)).to(dtype)


@pytest.mark.parametrize("op", OPS)
@torch.no_grad()
def test_every_activation_becomes_an_argument(op):
    layer, x = sparse_layer(op, bias=True), random(2, 5, 16)
    for form, (name, function) in FUSED.items():
        compiled, backend = compile_with(lambda x, f=function: f(layer(x)), FuseActivation())
        expected = function(dense_output(layer, x))
        torch.testing.assert_close(compiled(x), expected, rtol=1e-12, atol=1e-12)
        assert backend.counts == {"fuse_activation": 1}, form
        (projection,) = backend.projections_after()
        assert projection.args[6] == name, form
        assert backend.ops_after() == [projection.target], form


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@torch.no_grad()
def test_every_dtype(dtype):
    layer, x = sparse_layer("shift", dtype=dtype), random(5, 16, dtype=dtype)
    for form, (name, function) in FUSED.items():
        compiled, backend = compile_with(lambda x, f=function: f(layer(x)), FuseActivation())
        expected = function(dense_output(layer, x))
        torch.testing.assert_close(compiled(x), expected.to(dtype))
        assert backend.counts == {"fuse_activation": 1}, form
        (projection,) = backend.projections_after()
        assert (projection.args[6], projection.meta["val"].dtype) == (name, dtype), form
        assert "linear.py" in projection.meta["stack_trace"]


def leaking_silu(y: Tensor) -> tuple[Tensor, Tensor]:
    gate = torch.sigmoid(y)
    return y * gate, gate


KEPT = {
    "the projection is returned": lambda y: (F.relu(y), y),
    "two activations of it": lambda y: F.relu(y) + F.silu(y),
    "an inner value is returned": leaking_silu,
    "another activation": torch.tanh,
    "leaky relu": lambda y: F.leaky_relu(y, 0.1),
    "a scaled input": lambda y: F.gelu(2 * y),
    "another scale": lambda y: y * 0.4 * (1 + torch.erf(y * math.sqrt(0.5))),
    "a gate of something else": lambda y: y.flip(-1) * torch.sigmoid(y),
    "another dtype": lambda y: F.relu(y.float()),
}


@pytest.mark.parametrize("name", KEPT)
@torch.no_grad()
def test_what_is_no_activation_of_the_projection_alone_stays(name):
    layer, x = sparse_layer("shift"), random(5, 16)
    compiled, backend = compile_with(lambda x: KEPT[name](layer(x)), FuseActivation())
    torch.testing.assert_close(compiled(x), KEPT[name](layer(x)), rtol=1e-12, atol=1e-12)
    assert backend.counts == {"fuse_activation": 0}
    assert backend.ops_after() == backend.ops_before()


@torch.no_grad()
def test_a_second_activation_stays():
    layer, x = sparse_layer("shift"), random(5, 16)
    compiled, backend = compile_with(
        lambda x: F.silu(with_activation(layer, x, "gelu")), FuseActivation()
    )
    expected = F.silu(F.gelu(dense_output(layer, x)))
    torch.testing.assert_close(compiled(x), expected, rtol=1e-12, atol=1e-12)
    assert backend.counts == {"fuse_activation": 0}


@torch.no_grad()
def test_views_may_lie_between():
    layer, x = sparse_layer("shift"), random(2, 5, 16)

    def function(x: Tensor) -> Tensor:
        return F.gelu(layer(x).view(10, 4, 6))

    compiled, backend = compile_with(function, FuseActivation())
    expected = F.gelu(dense_output(layer, x).view(10, 4, 6))
    torch.testing.assert_close(compiled(x), expected, rtol=1e-12, atol=1e-12)
    assert backend.counts == {"fuse_activation": 1}
    assert len(backend.ops_after()) == 2


@pytest.mark.parametrize("op", OPS)
@torch.no_grad()
def test_bias_then_activation_make_one_op(op):
    layer, x, bias = sparse_layer(op), random(5, 16), random(24)
    compiled, backend = compile_with(
        lambda x, b: F.silu(layer(x) + b), FuseBias(), FuseActivation()
    )
    expected = F.silu(dense_output(layer, x) + bias)
    torch.testing.assert_close(compiled(x, bias), expected, rtol=1e-12, atol=1e-12)
    assert backend.counts == {"fuse_bias": 1, "fuse_activation": 1}
    (projection,) = backend.projections_after()
    assert backend.ops_after() == [projection.target]


@pytest.mark.parametrize(("name", "fused"), [("relu", 1), ("gelu", 0), ("silu", 0)])
def test_training_keeps_what_the_backward_needs(name, fused):
    layer, x = sparse_layer("shift", bias=True), random(6, 16).requires_grad_()
    function, weight = FUSED[name][1], random(6, 24) + 1
    compiled, backend = compile_with(lambda x: function(layer(x)) * weight, FuseActivation())
    compiled(x).sum().backward()
    assert [report.counts for report in backend.manager.reports] == [
        {"fuse_activation": fused},
        {"fuse_activation": 0},
    ]

    dense = layer.dense_weight().requires_grad_()
    reference = x.detach().clone().requires_grad_()
    bias = layer.bias.detach().clone().requires_grad_()
    (function(F.linear(reference, dense, bias)) * weight).sum().backward()
    torch.testing.assert_close(x.grad, reference.grad, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(layer.bias.grad, bias.grad, rtol=1e-11, atol=1e-11)
    rows, columns = layer.pattern.coordinates(layer.index)
    values_grad = dense.grad[rows, layer.perm.long()[columns]]
    torch.testing.assert_close(layer.values.grad, values_grad, rtol=1e-11, atol=1e-11)


def test_an_expression_is_compared_as_written_out():
    square_plus = Expression.trace(lambda x: x * x + x * x, torch.float32)
    for function, same in (
        (lambda x: x * x + x * x, True),
        (lambda x: (y := x * x) + y, True),
        (lambda x: x * x + x, False),
        (lambda x: x * x - x * x, False),
        (lambda x: torch.add(x * x, x * x, alpha=2), False),
    ):
        other = Expression.trace(function, torch.float32)
        assert (square_plus.match(other.source) is not None) is same
