"""The `padst` operator library: how every op of the package is registered."""

from __future__ import annotations

import functools
import importlib
import importlib.util
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.amp.autocast_mode import _cast

from padst_fx.kernels.native import load as native

LIBRARY = torch.library.Library("padst", "DEF")


def register(schema: str, kernel: Callable[..., Tensor], fake: Callable[..., Tensor]) -> str:
    """Define an op, its kernel for every device and its fake; returns the qualified name.

    `kernel` picks the implementation by the device of its first tensor (see `implementation`).
    """
    name = schema.split("(", 1)[0]
    LIBRARY.define(schema, tags=(torch.Tag.flexible_layout,))
    LIBRARY.impl(name, kernel, "CompositeExplicitAutograd")
    qualified = f"padst::{name}"
    torch.library.register_fake(qualified, fake, lib=LIBRARY)
    return qualified


def register_projection(
    schema: str, kernel: Callable[..., Tensor], fake: Callable[..., Tensor]
) -> str:
    """Like `register`, for an op that has a C++ kernel as well.

    The first call on the CPU loads the C++ kernels: registered for the CPU alone, they go before
    `kernel`, which stands for all devices.
    """
    name = schema.split("(", 1)[0]

    def call(*args: Any) -> Tensor:
        tensors = (argument for argument in args if isinstance(argument, Tensor))
        if all(map(_is_plain_cpu, tensors)) and native.loaded():
            return getattr(torch.ops.padst, name).default(*args)
        return kernel(*args)

    return register(schema, call, fake)


def _is_plain_cpu(tensor: Tensor) -> bool:
    """Whether the dispatcher sends the tensor to the CPU's own kernels."""
    return tensor.is_cpu and tensor.layout is torch.strided


def register_autograd(
    qualified: str, backward: Callable[..., Any], setup_context: Callable[..., None]
) -> None:
    """Attach a backward to an op of this library."""
    torch.library.register_autograd(
        qualified, backward, setup_context=setup_context, lib=LIBRARY
    )


def register_autocast(qualified: str) -> None:
    """Let autocast cast every floating input of the op to the active lower-precision dtype."""
    name = qualified.split("::", 1)[1]
    op = getattr(torch.ops.padst, name).default
    autocast_keys = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCPU) | (
        torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCUDA)
    )

    def autocast_for(device: str) -> Callable[..., Tensor]:
        def call(*args: Any) -> Tensor:
            dtype = torch.get_autocast_dtype(device)
            with torch._C._ExcludeDispatchKeyGuard(autocast_keys):
                return op(*_cast(args, device, dtype))

        return call

    LIBRARY.impl(name, autocast_for("cpu"), "AutocastCPU")
    LIBRARY.impl(name, autocast_for("cuda"), "AutocastCUDA")


def implementation(kernel: str, tensor: Tensor) -> ModuleType:
    """The module that computes `kernel` on the tensor's device: Triton on CUDA, else torch."""
    return _load(kernel, "triton_launch" if tensor.is_cuda and _has_triton() else "cpu")


@functools.cache
def _load(kernel: str, variant: str) -> ModuleType:
    return importlib.import_module(f"padst_fx.kernels.{kernel}.{variant}")


@functools.cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def check_operands(x: Tensor, values: Tensor) -> None:
    """Raise `RuntimeError` unless input and weights have one dtype and device, as `F.linear`."""
    torch._check(
        x.device == values.device,
        lambda: f"expected x and values on one device, got {x.device} and {values.device}",
    )
    torch._check(
        x.dtype == values.dtype,
        lambda: f"expected x and values of one dtype, got {x.dtype} and {values.dtype}",
    )


def bias_grad(grad: Tensor, bias: Tensor) -> Tensor:
    """The gradient of a bias, of length 0 where the bias is absent."""
    return rows(grad).sum(0) if bias.numel() else torch.zeros_like(bias)


def rows(tensor: Tensor) -> Tensor:
    """All leading dimensions flattened into one: `[..., F] -> [M, F]`."""
    return tensor.reshape(-1, tensor.shape[-1])


def like_rows(result: Tensor, tensor: Tensor) -> Tensor:
    """The leading dimensions of `tensor` put back on a `[M, F]` result."""
    return result.reshape(*tensor.shape[:-1], result.shape[-1])


def fake_rows(tensor: Tensor, features: int | torch.SymInt) -> Tensor:
    """An empty tensor with the leading dimensions of `tensor` and `features` as the last one."""
    return tensor.new_empty((*tensor.shape[:-1], features))
