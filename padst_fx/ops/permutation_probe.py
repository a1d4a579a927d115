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
    """`[grad_e^T x_e, grad_o^T x_o, x^T x]` with `x = x[:, perm[J]]`, `[O + O + J, J]`.

    The first two are the dense gradient over the features that the positions J read, summed over
    the tokens of even and of odd samples: what they differ by is chance. The last are the features'
    second moments over all tokens. Samples are what the first dimension counts.
    """
    wide = accumulation_dtype(grad.dtype)
    features = perm.index_select(0, positions).long()
    outputs, count = grad.shape[-1], len(features)
    signal = torch.zeros(2 * outputs + count, count, dtype=wide, device=grad.device)
    for half in range(2):
        gradient = _every_other(grad, half).to(wide)
        read = _every_other(x, half).index_select(1, features).to(wide)
        torch.mm(gradient.t(), read, out=signal[half * outputs : (half + 1) * outputs])
        signal[2 * outputs :].addmm_(read.t(), read)
    return signal


def _every_other(tensor: Tensor, first: int) -> Tensor:
    """The rows of every other sample from `first` on; of a single sample, every other row."""
    flat = rows(tensor)
    count, features = flat.shape
    is_batch = tensor.dim() > 2 and tensor.shape[0] > 1
    length = max(1, count // tensor.shape[0]) if is_batch else 1
    return flat.reshape(count // length, length, features)[first::2].flatten(0, 1)


def _fake_signal(grad: Tensor, x: Tensor, perm: Tensor, positions: Tensor) -> Tensor:
    count = positions.shape[0]
    shape = (2 * grad.shape[-1] + count, count)
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
