"""Ops of the shift kernel: width-1 wrapped diagonals. Maths: `kernels/shift/README.md`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from padst_fx.kernels import activation as activations
from padst_fx.ops.library import (
    bias_grad,
    check_operands,
    fake_rows,
    implementation,
    like_rows,
    register_autocast,
    register_autograd,
    register_projection,
    rows,
)


def _forward(
    x: Tensor,
    values: Tensor,
    offsets: Tensor,
    perm: Tensor,
    bias: Tensor,
    out_features: int,
    activation: str,
) -> Tensor:
    activations.check_name(activation)
    check_operands(x, values)
    y = implementation("shift", x).shift_forward(
        rows(x), values, offsets, perm, bias, out_features, activation
    )
    return like_rows(y, x)


def _input_grad(
    grad: Tensor, values: Tensor, offsets: Tensor, perm: Tensor, in_features: int
) -> Tensor:
    dx = implementation("shift", grad).shift_input_grad(
        rows(grad), values, offsets, perm, in_features
    )
    return like_rows(dx, grad)


def _weight_grad(grad: Tensor, x: Tensor, offsets: Tensor, perm: Tensor) -> Tensor:
    return implementation("shift", grad).shift_weight_grad(rows(grad), rows(x), offsets, perm)


def _fake_forward(
    x: Tensor,
    values: Tensor,
    offsets: Tensor,
    perm: Tensor,
    bias: Tensor,
    out_features: int,
    activation: str,
) -> Tensor:
    check_operands(x, values)
    return fake_rows(x, out_features)


def _fake_input_grad(
    grad: Tensor, values: Tensor, offsets: Tensor, perm: Tensor, in_features: int
) -> Tensor:
    return fake_rows(grad, in_features)


def _fake_weight_grad(grad: Tensor, x: Tensor, offsets: Tensor, perm: Tensor) -> Tensor:
    length = torch.sym_min(grad.shape[-1], x.shape[-1])
    return grad.new_empty((offsets.shape[0], length))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, values, offsets, perm, bias, ctx.out_features, ctx.activation = inputs
    ctx.save_for_backward(x, values, offsets, perm, bias)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, values, offsets, perm, bias = ctx.saved_tensors
    if ctx.activation != "none":
        pre = torch.ops.padst.shift(x, values, offsets, perm, bias, ctx.out_features, "none")
        grad = activations.backward(ctx.activation, grad, pre)
    dx = dvalues = dbias = None
    if ctx.needs_input_grad[0]:
        dx = torch.ops.padst.shift_input_grad(grad, values, offsets, perm, x.shape[-1])
    if ctx.needs_input_grad[1]:
        dvalues = torch.ops.padst.shift_weight_grad(grad, x, offsets, perm)
    if ctx.needs_input_grad[4]:
        dbias = bias_grad(grad, bias)
    return dx, dvalues, None, None, dbias, None, None


def _setup_input_grad(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, _ = inputs
    ctx.save_for_backward(*tensors)


def _backward_input_grad(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
    grad, values, offsets, perm = ctx.saved_tensors
    dgrad = dvalues = None
    if ctx.needs_input_grad[0]:
        dgrad = _without_bias(cotangent, values, offsets, perm, grad.shape[-1])
    if ctx.needs_input_grad[1]:
        dvalues = torch.ops.padst.shift_weight_grad(grad, cotangent, offsets, perm)
    return dgrad, dvalues, None, None, None


def _setup_weight_grad(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward_weight_grad(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
    grad, x, offsets, perm = ctx.saved_tensors
    dgrad = dx = None
    if ctx.needs_input_grad[0]:
        dgrad = _without_bias(x, cotangent, offsets, perm, grad.shape[-1])
    if ctx.needs_input_grad[1]:
        dx = torch.ops.padst.shift_input_grad(grad, cotangent, offsets, perm, x.shape[-1])
    return dgrad, dx, None, None


def _without_bias(
    x: Tensor, values: Tensor, offsets: Tensor, perm: Tensor, out_features: int
) -> Tensor:
    return torch.ops.padst.shift(
        x, values, offsets, perm, x.new_empty(0), out_features, "none"
    )


_SHIFT = register_projection(
    "shift(Tensor x, Tensor values, Tensor offsets, Tensor perm, Tensor bias, "
    "int out_features, str activation) -> Tensor",
    _forward,
    _fake_forward,
)
_SHIFT_INPUT_GRAD = register_projection(
    "shift_input_grad(Tensor grad, Tensor values, Tensor offsets, Tensor perm, "
    "int in_features) -> Tensor",
    _input_grad,
    _fake_input_grad,
)
_SHIFT_WEIGHT_GRAD = register_projection(
    "shift_weight_grad(Tensor grad, Tensor x, Tensor offsets, Tensor perm) -> Tensor",
    _weight_grad,
    _fake_weight_grad,
)
register_autograd(_SHIFT, _backward, _setup_context)
register_autograd(_SHIFT_INPUT_GRAD, _backward_input_grad, _setup_input_grad)
register_autograd(_SHIFT_WEIGHT_GRAD, _backward_weight_grad, _setup_weight_grad)
register_autocast(_SHIFT)
