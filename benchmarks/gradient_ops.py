"""The gradient ops of a sparse layer, each as a call of its own."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from padst_fx import SparseLinear


def input_gradient(layer: SparseLinear, grad: Tensor) -> Callable[[], Tensor]:
    """A call of the op for the gradient of the layer's input, `[M, out] -> [M, in]`."""
    ops, values, index, perm = torch.ops.padst, layer.values, layer.index, layer.perm
    if layer.pattern.kernel == "shift":
        return partial(ops.shift_input_grad, grad, values, index, perm, layer.in_features)
    if layer.pattern.kernel == "scatter_gemm":
        return partial(ops.scatter_gemm_input_grad, grad, values, index, perm)
    return partial(
        ops.gather_gemm_input_grad, grad, values, index, perm, window(layer), layer.in_features
    )


def weight_gradient(layer: SparseLinear, grad: Tensor, x: Tensor) -> Callable[[], Tensor]:
    """A call of the op for the gradient of the layer's values."""
    ops, index, perm = torch.ops.padst, layer.index, layer.perm
    if layer.pattern.kernel == "shift":
        return partial(ops.shift_weight_grad, grad, x, index, perm)
    group = layer.values.shape[2]
    if layer.pattern.kernel == "scatter_gemm":
        return partial(ops.scatter_gemm_weight_grad, grad, x, index, perm, group)
    return partial(ops.gather_gemm_weight_grad, grad, x, index, perm, window(layer), group)


def window(layer: SparseLinear) -> int:
    """The number of inputs among which an entry of `gather_gemm` chooses."""
    return getattr(layer.pattern, "m", layer.in_features)
