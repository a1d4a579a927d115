"""Ops of the gather-GEMM kernel: row blocks with lists of input columns, and its transposed form.

Maths: `kernels/gather_gemm/README.md`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from padst_fx.kernels import activation as activations
from padst_fx.ops.library import (
    fake_rows,
    implementation,
    like_rows,
    register,
    register_autocast,
    register_autograd,
    rows,
)


def _gather(
    x: Tensor,
    values: Tensor,
    index: Tensor,
    perm: Tensor,
    bias: Tensor,
    window: int,
    activation: str,
) -> Tensor:
    activations.check_name(activation)
    y = implementation("gather_gemm", x).gather_gemm_forward(
        rows(x), values, index, perm, bias, window, activation
    )
    return like_rows(y, x)


def _gather_input_grad(
    grad: Tensor, values: Tensor, index: Tensor, perm: Tensor, window: int, in_features: int
) -> Tensor:
    dx = implementation("gather_gemm", grad).gather_gemm_input_grad(
        rows(grad), values, index, perm, window, in_features
    )
    return like_rows(dx, grad)


def _gather_weight_grad(
    grad: Tensor, x: Tensor, index: Tensor, perm: Tensor, window: int, group: int
) -> Tensor:
    return implementation("gather_gemm", grad).gather_gemm_weight_grad(
        rows(grad), rows(x), index, perm, window, group
    )


def _scatter(
    x: Tensor,
    values: Tensor,
    index: Tensor,
    perm: Tensor,
    bias: Tensor,
    out_features: int,
    activation: str,
) -> Tensor:
    activations.check_name(activation)
    y = implementation("gather_gemm", x).scatter_gemm_forward(
        rows(x), values, index, perm, bias, out_features, activation
    )
    return like_rows(y, x)


def _scatter_input_grad(grad: Tensor, values: Tensor, index: Tensor, perm: Tensor) -> Tensor:
    dx = implementation("gather_gemm", grad).scatter_gemm_input_grad(
        rows(grad), values, index, perm
    )
    return like_rows(dx, grad)


def _scatter_weight_grad(
    grad: Tensor, x: Tensor, index: Tensor, perm: Tensor, group: int
) -> Tensor:
    return implementation("gather_gemm", grad).scatter_gemm_weight_grad(
        rows(grad), rows(x), index, perm, group
    )


def _fake_gather(
    x: Tensor,
    values: Tensor,
    index: Tensor,
    perm: Tensor,
    bias: Tensor,
    window: int,
    activation: str,
) -> Tensor:
    return fake_rows(x, values.shape[0] * values.shape[3])


def _fake_gather_input_grad(
    grad: Tensor, values: Tensor, index: Tensor, perm: Tensor, window: int, in_features: int
) -> Tensor:
    return fake_rows(grad, in_features)


def _fake_gather_weight_grad(
    grad: Tensor, x: Tensor, index: Tensor, perm: Tensor, window: int, group: int
) -> Tensor:
    blocks, entries = index.shape
    return grad.new_empty((blocks, entries, group, grad.shape[-1] // blocks))


def _fake_scatter(
    x: Tensor,
    values: Tensor,
    index: Tensor,
    perm: Tensor,
    bias: Tensor,
    out_features: int,
    activation: str,
) -> Tensor:
    return fake_rows(x, out_features)


def _fake_scatter_input_grad(grad: Tensor, values: Tensor, index: Tensor, perm: Tensor) -> Tensor:
    return fake_rows(grad, values.shape[0] * values.shape[3])


def _fake_scatter_weight_grad(
    grad: Tensor, x: Tensor, index: Tensor, perm: Tensor, group: int
) -> Tensor:
    blocks, entries = index.shape
    return grad.new_empty((blocks, entries, group, x.shape[-1] // blocks))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, values, index, perm, bias, ctx.extent, ctx.activation = inputs
    ctx.save_for_backward(x, values, index, perm, bias)


def _pre_activation_grad(ctx: Any, op: Any, grad: Tensor) -> Tensor:
    """The gradient before the fused activation; the pre-activation is computed again."""
    if ctx.activation == "none":
        return grad
    return activations.backward(
        ctx.activation, grad, op(*ctx.saved_tensors, ctx.extent, "none")
    )


def _bias_grad(grad: Tensor, bias: Tensor) -> Tensor:
    return rows(grad).sum(0) if bias.numel() else torch.zeros_like(bias)


def _gather_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    grad = _pre_activation_grad(ctx, torch.ops.padst.gather_gemm, grad)
    x, values, index, perm, bias = ctx.saved_tensors
    dx = dvalues = dbias = None
    if ctx.needs_input_grad[0]:
        dx = torch.ops.padst.gather_gemm_input_grad(
            grad, values, index, perm, ctx.extent, x.shape[-1]
        )
    if ctx.needs_input_grad[1]:
        dvalues = torch.ops.padst.gather_gemm_weight_grad(
            grad, x, index, perm, ctx.extent, values.shape[2]
        )
    if ctx.needs_input_grad[4]:
        dbias = _bias_grad(grad, bias)
    return dx, dvalues, None, None, dbias, None, None


def _scatter_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    grad = _pre_activation_grad(ctx, torch.ops.padst.scatter_gemm, grad)
    x, values, index, perm, bias = ctx.saved_tensors
    dx = dvalues = dbias = None
    if ctx.needs_input_grad[0]:
        dx = torch.ops.padst.scatter_gemm_input_grad(grad, values, index, perm)
    if ctx.needs_input_grad[1]:
        dvalues = torch.ops.padst.scatter_gemm_weight_grad(grad, x, index, perm, values.shape[2])
    if ctx.needs_input_grad[4]:
        dbias = _bias_grad(grad, bias)
    return dx, dvalues, None, None, dbias, None, None


def _setup_gather_input_grad(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.window, _ = inputs
    ctx.save_for_backward(*tensors)


def _backward_gather_input_grad(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
    grad, values, index, perm = ctx.saved_tensors
    dgrad = dvalues = None
    if ctx.needs_input_grad[0]:
        dgrad = torch.ops.padst.gather_gemm(
            cotangent, values, index, perm, cotangent.new_empty(0), ctx.window, "none"
        )
    if ctx.needs_input_grad[1]:
        dvalues = torch.ops.padst.gather_gemm_weight_grad(
            grad, cotangent, index, perm, ctx.window, values.shape[2]
        )
    return dgrad, dvalues, None, None, None, None


def _setup_gather_weight_grad(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.window, _ = inputs
    ctx.save_for_backward(*tensors)


def _backward_gather_weight_grad(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
    grad, x, index, perm = ctx.saved_tensors
    dgrad = dx = None
    if ctx.needs_input_grad[0]:
        dgrad = torch.ops.padst.gather_gemm(
            x, cotangent, index, perm, x.new_empty(0), ctx.window, "none"
        )
    if ctx.needs_input_grad[1]:
        dx = torch.ops.padst.gather_gemm_input_grad(
            grad, cotangent, index, perm, ctx.window, x.shape[-1]
        )
    return dgrad, dx, None, None, None, None


def _setup_scatter_input_grad(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward_scatter_input_grad(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
    grad, values, index, perm = ctx.saved_tensors
    dgrad = dvalues = None
    if ctx.needs_input_grad[0]:
        dgrad = torch.ops.padst.scatter_gemm(
            cotangent, values, index, perm, cotangent.new_empty(0), grad.shape[-1], "none"
        )
    if ctx.needs_input_grad[1]:
        dvalues = torch.ops.padst.scatter_gemm_weight_grad(
            grad, cotangent, index, perm, values.shape[2]
        )
    return dgrad, dvalues, None, None


def _setup_scatter_weight_grad(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, _ = inputs
    ctx.save_for_backward(*tensors)


def _backward_scatter_weight_grad(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
    grad, x, index, perm = ctx.saved_tensors
    dgrad = dx = None
    if ctx.needs_input_grad[0]:
        dgrad = torch.ops.padst.scatter_gemm(
            x, cotangent, index, perm, x.new_empty(0), grad.shape[-1], "none"
        )
    if ctx.needs_input_grad[1]:
        dx = torch.ops.padst.scatter_gemm_input_grad(grad, cotangent, index, perm)
    return dgrad, dx, None, None, None


_GATHER = register(
    "gather_gemm(Tensor x, Tensor values, Tensor index, Tensor perm, Tensor bias, "
    "int window, str activation) -> Tensor",
    _gather,
    _fake_gather,
)
_GATHER_INPUT_GRAD = register(
    "gather_gemm_input_grad(Tensor grad, Tensor values, Tensor index, Tensor perm, "
    "int window, int in_features) -> Tensor",
    _gather_input_grad,
    _fake_gather_input_grad,
)
_GATHER_WEIGHT_GRAD = register(
    "gather_gemm_weight_grad(Tensor grad, Tensor x, Tensor index, Tensor perm, "
    "int window, int group) -> Tensor",
    _gather_weight_grad,
    _fake_gather_weight_grad,
)
_SCATTER = register(
    "scatter_gemm(Tensor x, Tensor values, Tensor index, Tensor perm, Tensor bias, "
    "int out_features, str activation) -> Tensor",
    _scatter,
    _fake_scatter,
)
_SCATTER_INPUT_GRAD = register(
    "scatter_gemm_input_grad(Tensor grad, Tensor values, Tensor index, Tensor perm) -> Tensor",
    _scatter_input_grad,
    _fake_scatter_input_grad,
)
_SCATTER_WEIGHT_GRAD = register(
    "scatter_gemm_weight_grad(Tensor grad, Tensor x, Tensor index, Tensor perm, "
    "int group) -> Tensor",
    _scatter_weight_grad,
    _fake_scatter_weight_grad,
)
register_autograd(_GATHER, _gather_backward, _setup_context)
register_autograd(_SCATTER, _scatter_backward, _setup_context)
register_autograd(_GATHER_INPUT_GRAD, _backward_gather_input_grad, _setup_gather_input_grad)
register_autograd(_GATHER_WEIGHT_GRAD, _backward_gather_weight_grad, _setup_gather_weight_grad)
register_autograd(_SCATTER_INPUT_GRAD, _backward_scatter_input_grad, _setup_scatter_input_grad)
register_autograd(_SCATTER_WEIGHT_GRAD, _backward_scatter_weight_grad, _setup_scatter_weight_grad)
register_autocast(_GATHER)
register_autocast(_SCATTER)
