"""Ops of the gather-GEMM kernel: row blocks, each with its own list of input columns.

Maths: `kernels/gather_gemm/README.md`.
"""

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
    index: Tensor,
    perm: Tensor,
    bias: Tensor,
    window: int,
    activation: str,
) -> Tensor:
    activations.check_name(activation)
    check_operands(x, values)
    y = implementation("gather_gemm", x).gather_gemm_forward(
        rows(x), values, index, perm, bias, window, activation
    )
    return like_rows(y, x)


def _input_grad(
    grad: Tensor, values: Tensor, index: Tensor, perm: Tensor, window: int, in_features: int
) -> Tensor:
    dx = implementation("gather_gemm", grad).gather_gemm_input_grad(
        rows(grad), values, index, perm, window, in_features
    )
    return like_rows(dx, grad)


def _weight_grad(
    grad: Tensor, x: Tensor, index: Tensor, perm: Tensor, window: int, group: int
) -> Tensor:
    return implementation("gather_gemm", grad).gather_gemm_weight_grad(
        rows(grad), rows(x), index, perm, window, group
    )


def _fake_forward(
    x: Tensor,
    values: Tensor,
    index: Tensor,
    perm: Tensor,
    bias: Tensor,
    window: int,
    activation: str,
) -> Tensor:
    check_operands(x, values)
    return fake_rows(x, values.shape[0] * values.shape[3])


def _fake_input_grad(
    grad: Tensor, values: Tensor, index: Tensor, perm: Tensor, window: int, in_features: int
) -> Tensor:
    return fake_rows(grad, in_features)


def _fake_weight_grad(
    grad: Tensor, x: Tensor, index: Tensor, perm: Tensor, window: int, group: int
) -> Tensor:
    blocks, entries = index.shape
    return grad.new_empty((blocks, entries, group, grad.shape[-1] // blocks))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, values, index, perm, bias, ctx.window, ctx.activation = inputs
    ctx.save_for_backward(x, values, index, perm, bias)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, values, index, perm, bias = ctx.saved_tensors
    if ctx.activation != "none":
        pre = torch.ops.padst.gather_gemm(x, values, index, perm, bias, ctx.window, "none")
        grad = activations.backward(ctx.activation, grad, pre)
    dx = dvalues = dbias = None
    if ctx.needs_input_grad[0]:
        dx = torch.ops.padst.gather_gemm_input_grad(
            grad, values, index, perm, ctx.window, x.shape[-1]
        )
    if ctx.needs_input_grad[1]:
        dvalues = torch.ops.padst.gather_gemm_weight_grad(
            grad, x, index, perm, ctx.window, values.shape[2]
        )
    if ctx.needs_input_grad[4]:
        dbias = bias_grad(grad, bias)
    return dx, dvalues, None, None, dbias, None, None


def _setup_gradient(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.window, _ = inputs
    ctx.save_for_backward(*tensors)


def _backward_input_grad(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
    grad, values, index, perm = ctx.saved_tensors
    dgrad = dvalues = None
    if ctx.needs_input_grad[0]:
        dgrad = _without_bias(cotangent, values, index, perm, ctx.window)
    if ctx.needs_input_grad[1]:
        dvalues = torch.ops.padst.gather_gemm_weight_grad(
            grad, cotangent, index, perm, ctx.window, values.shape[2]
        )
    return dgrad, dvalues, None, None, None, None


def _backward_weight_grad(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
    grad, x, index, perm = ctx.saved_tensors
    dgrad = dx = None
    if ctx.needs_input_grad[0]:
        dgrad = _without_bias(x, cotangent, index, perm, ctx.window)
    if ctx.needs_input_grad[1]:
        dx = torch.ops.padst.gather_gemm_input_grad(
            grad, cotangent, index, perm, ctx.window, x.shape[-1]
        )
    return dgrad, dx, None, None, None, None


def _without_bias(x: Tensor, values: Tensor, index: Tensor, perm: Tensor, window: int) -> Tensor:
    return torch.ops.padst.gather_gemm(
        x, values, index, perm, x.new_empty(0), window, "none"
    )


_GATHER_GEMM = register_projection(
    "gather_gemm(Tensor x, Tensor values, Tensor index, Tensor perm, Tensor bias, "
    "int window, str activation) -> Tensor",
    _forward,
    _fake_forward,
)
_INPUT_GRAD = register_projection(
    "gather_gemm_input_grad(Tensor grad, Tensor values, Tensor index, Tensor perm, "
    "int window, int in_features) -> Tensor",
    _input_grad,
    _fake_input_grad,
)
_WEIGHT_GRAD = register_projection(
    "gather_gemm_weight_grad(Tensor grad, Tensor x, Tensor index, Tensor perm, "
    "int window, int group) -> Tensor",
    _weight_grad,
    _fake_weight_grad,
)
register_autograd(_GATHER_GEMM, _backward, _setup_context)
register_autograd(_INPUT_GRAD, _backward_input_grad, _setup_gradient)
register_autograd(_WEIGHT_GRAD, _backward_weight_grad, _setup_gradient)
register_autocast(_GATHER_GEMM)
