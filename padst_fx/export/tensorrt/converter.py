"""Projection ops in a TensorRT network: converters for Torch-TensorRT."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from padst_fx.export.tensorrt.attribute import encoded
from padst_fx.export.tensorrt.plugin import KERNELS, NAMESPACE
from padst_fx.export.tensorrt.profile import bounds
from padst_fx.export.tensorrt.step import LAUNCHES, Projection, Step, steps

OPERANDS = ("x", "values", "index", "perm", "bias")


def register_converters(trtp: Any, converter: Callable[..., Any], constant: Callable[..., Any],
                        device: torch.device) -> None:  # fmt: skip
    """Let Torch-TensorRT convert every projection op to plugins.

    `converter` is its `dynamo_tensorrt_converter`, `constant` its `get_trt_tensor`, `trtp`
    `tensorrt.plugin` with the plugins registered; tiles are those of `device`.
    """
    for op in LAUNCHES:
        target = getattr(torch.ops.padst, op).default
        convert = _converter(op, trtp, constant, device)
        converter(target, supports_dynamic_shapes=True)(convert)


def _converter(
    op: str, trtp: Any, constant: Callable[..., Any], device: torch.device
) -> Callable[..., Any]:
    def convert(
        ctx: Any, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any], name: str
    ) -> Any:
        node_x = ctx.current_node.args[0]
        projection, dynamic = projection_of(op, node_x.meta["val"], args[1:])
        network = ctx.net
        x, features = args[0], projection.x.shape[1]
        rows = _reshaped(network, x, (-1, features))
        tensors = [rows]
        for label, operand in zip(OPERANDS[1:], args[1:5], strict=True):
            # An absent operand is never read, so that there need not be a tensor.
            present = None if operand.numel() == 0 else _stored(operand)
            tensors.append(
                rows if present is None else constant(ctx, present, f"{name}_{label}")
            )
        for number, step in enumerate(steps(projection, dynamic, device)):
            tensors += _add(network, trtp, step, tensors, f"[{target}]-[{name}]-{number}")
        return _like_rows(network, tensors[-1], x)

    return convert


def projection_of(
    op: str, x: Tensor, operands: Sequence[Any]
) -> tuple[Projection, bool]:
    """The projection that a node computes, with as many tokens as it is ever given; is it dynamic.

    `x` is the fake tensor of the node's input. Raises `ValueError` for a dimension without an
    upper bound, and for float64.
    """
    if x.dtype == torch.float64:
        raise ValueError("TensorRT has no float64: export with precision='fp32'")
    sizes = [bounds(size, "a sparse layer's input", axis)[2] for axis, size in enumerate(x.shape)]
    dynamic = any(not isinstance(size, int) for size in x.shape[:-1])
    rows = torch.empty((prod(sizes[:-1]), sizes[-1]), dtype=x.dtype, device="meta")
    tensors = (torch.empty_like(_stored(tensor), device="meta") for tensor in operands[:4])
    values, index, perm, bias = tensors
    return Projection(op, rows, values, index, perm, bias, tuple(operands[4:])), dynamic


def _stored(operand: Tensor) -> Tensor:
    """An operand as a constant of the network: integers have 32 bits there."""
    return operand if operand.is_floating_point() else operand.to(torch.int32)


def _add(network: Any, trtp: Any, step: Step, tensors: list[Any], name: str) -> list[Any]:
    """Add a step's plugin; the tensors that it writes."""
    kernel = step.kernel.__name__
    plugin = getattr(getattr(trtp.op, NAMESPACE), kernel)
    read = [tensors[number] for number in step.reads]
    layer = network.add_plugin(plugin(*read, step=encoded(step)), aot=True)
    layer.name = f"{name}-{kernel}"
    return [layer.get_output(place) for place in range(KERNELS[kernel].writes)]


def _reshaped(network: Any, tensor: Any, shape: tuple[int, ...]) -> Any:
    layer = network.add_shuffle(tensor)
    layer.reshape_dims = shape
    return layer.get_output(0)


def _like_rows(network: Any, result: Any, x: Any) -> Any:
    """The leading dimensions of `x` put back on a result [tokens, features].

    The sizes are read from `x` as the engine runs: several of them may be dynamic.
    """
    leading, features = len(x.shape) - 1, result.shape[-1]
    sizes = network.add_shape(x).get_output(0)
    sizes = network.add_slice(sizes, (0,), (leading,), (1,)).get_output(0)
    last = network.add_constant((1,), np.array([features], np.int64)).get_output(0)
    layer = network.add_shuffle(result)
    layer.set_input(1, network.add_concatenation([sizes, last]).get_output(0))
    return layer.get_output(0)
