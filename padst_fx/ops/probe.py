"""Probe ops: what turns a plain step into a scoring step.

Each returns a copy of a projection's output and takes a `probe` tensor that the forward never
reads; the probe's gradient is *defined* as the growth score. So scores travel through autograd,
AOTAutograd and gradient accumulation like any gradient, and no hook or side effect is needed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from padst_fx.ops import growth_score as _scores  # noqa: F401  (registers the score ops)
from padst_fx.ops.library import register, register_autograd


def _copy(y: Tensor, *_: Any) -> Tensor:
    return y.clone(memory_format=torch.contiguous_format)


def _fake_copy(y: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(y, memory_format=torch.contiguous_format)


def _as_it_is(score: Tensor, *_: int) -> Tensor:
    return score


def _mark_slots(score: Tensor, n: int, m: int) -> Tensor:
    """Scores and slots, the slots raised by m.

    Autograd adds up the gradients of several uses of one layer, which slots do not survive; a
    sum is then told by its slots of 2m and more.
    """
    return torch.stack((score[0], score[1] + m))


def _register_probe(
    units: str,
    tensors: str,
    integers: str,
    encode: Callable[..., Tensor] = _as_it_is,
    defined_as: str = "growth_score",
) -> None:
    """Register `<units>_probe`, whose probe gradient is `encode(<units>_<defined_as>)`.

    `tensors` and `integers` are the schema of the score's arguments after `(grad, x)`.
    """
    count = tensors.count("Tensor")
    extras = "".join(f", {part}" for part in (tensors, "Tensor probe", integers) if part)

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, x, *rest = inputs
        ctx.save_for_backward(x, *rest[:count])
        ctx.integers = rest[count + 1 :]
        ctx.probe_dtype = rest[count].dtype

    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        score = None
        if ctx.needs_input_grad[2 + count]:
            op: Callable[..., Tensor] = getattr(torch.ops.padst, f"{units}_{defined_as}")
            x, *rest = ctx.saved_tensors
            score = encode(op(grad, x, *rest, *ctx.integers), *ctx.integers)
            score = score.to(ctx.probe_dtype)
        return grad, None, *([None] * count), score, *([None] * len(ctx.integers))

    qualified = register(
        f"{units}_probe(Tensor y, Tensor x{extras}) -> Tensor", _copy, _fake_copy
    )
    register_autograd(qualified, backward, setup_context)


_register_probe("diag", "Tensor perm", "int width, int run")
_register_probe("block", "Tensor perm", "int size")
_register_probe("nm", "Tensor index, Tensor perm", "int n, int m", _mark_slots)
_register_probe("weight", "Tensor perm", "")
_register_probe("dense", "Tensor perm", "", defined_as="gradient")
