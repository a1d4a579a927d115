"""The permutation probe: what a scoring step tells about where features belong.

Like the probes of growth scores it is a copy in the forward and a definition in the backward.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from padst_fx.kernels.precision import accumulation_dtype
from padst_fx.ops.library import register, register_autograd, rows


def _signal(grad: Tensor, x: Tensor, perm: Tensor, positions: Tensor) -> Tensor:
    """`[grad, x_J]^T x_J` with `x_J = x[:, perm[J]]`, `[O + J, J]`.

    The first `O` rows are the dense gradient over the features that the positions J read, the
    others the features' second moments; both are sums over tokens.
    """
    wide = accumulation_dtype(grad.dtype)
    read = rows(x).index_select(1, perm.index_select(0, positions).long()).to(wide)
    gradient = rows(grad).to(wide)
    outputs, count = gradient.shape[1], read.shape[1]
    signal = read.new_empty(outputs + count, count)
    torch.mm(gradient.t(), read, out=signal[:outputs])
    torch.mm(read.t(), read, out=signal[outputs:])
    return signal


def _fake_signal(grad: Tensor, x: Tensor, perm: Tensor, positions: Tensor) -> Tensor:
    count = positions.shape[0]
    shape = (grad.shape[-1] + count, count)
    return grad.new_empty(shape, dtype=accumulation_dtype(grad.dtype))


def _copy(y: Tensor, *_: Tensor) -> Tensor:
    return y.clone(memory_format=torch.contiguous_format)


def _fake_copy(y: Tensor, *_: Tensor) -> Tensor:
    return torch.empty_like(y, memory_format=torch.contiguous_format)


def _setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    _, x, perm, positions, probe = inputs
    ctx.save_for_backward(x, perm, positions)
    ctx.probe_dtype = probe.dtype


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    signal = None
    if ctx.needs_input_grad[4]:
        signal = torch.ops.padst.permutation_signal(grad, *ctx.saved_tensors).to(ctx.probe_dtype)
    return grad, None, None, None, signal


register(
    "permutation_signal(Tensor grad, Tensor x, Tensor perm, Tensor positions) -> Tensor",
    _signal,
    _fake_signal,
)
register_autograd(
    register(
        "permutation_probe(Tensor y, Tensor x, Tensor perm, Tensor positions, Tensor probe)"
        " -> Tensor",
        _copy,
        _fake_copy,
    ),
    _backward,
    _setup_context,
)
