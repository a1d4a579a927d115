"""Gather-GEMM and scatter-GEMM through a dense matrix: the functions of `triton_launch`."""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch import Tensor

from padst_fx.kernels import dense_products, triton_call
from padst_fx.kernels.gather_gemm.columns import entries_per_window
from padst_fx.kernels.integers import ceil_div

BLOCK = 512

_kernels = triton_call.imported_late("padst_fx.kernels.gather_gemm.triton_dense_kernels")


def _launch(
    kernel: Any,
    source: Tensor,
    index: Tensor,
    window: int,
    blocked_by_gathered: Tensor,
    shape: tuple[int, ...],
    result: Tensor,
) -> None:
    """Move all values of ``shape`` [R, E, G, V] between themselves and a matrix."""
    size, features = prod(shape), blocked_by_gathered.shape[1]
    triton_call.launch(
        kernel,
        ceil_div(size, BLOCK),
        source,
        index.contiguous(),
        size,
        shape[1],
        entries_per_window(shape[1], window, features),
        window,
        *blocked_by_gathered.stride(),
        result,
        GROUP=shape[2],
        TILE=shape[3],
        LONG=triton_call.needs_long(blocked_by_gathered),
        BLOCK=BLOCK,
        num_warps=4,
    )


def _write(values: Tensor, index: Tensor, window: int, blocked_by_gathered: Tensor) -> None:
    kernel, values = _kernels().write_values_kernel, values.contiguous()
    shape = tuple(values.shape)
    _launch(kernel, values, index, window, blocked_by_gathered, shape, blocked_by_gathered)


def entries(blocked_by_gathered: Tensor, index: Tensor, window: int, group: int) -> Tensor:
    """The entries [R, E, G, V] of a matrix [R*V, features], or of a transposed one, at an index."""
    tile = blocked_by_gathered.shape[0] // index.shape[0]
    shape = (*index.shape, group, tile)
    result = torch.empty(shape, dtype=blocked_by_gathered.dtype, device=index.device)
    kernel = _kernels().read_values_kernel
    _launch(kernel, blocked_by_gathered, index, window, blocked_by_gathered, shape, result)
    return result


def gathering_matrix(values: Tensor, index: Tensor, window: int, features: int) -> Tensor:
    """S [R*V, features] of the gather form."""
    rows = values.shape[0] * values.shape[3]
    dense = torch.zeros((rows, features), dtype=values.dtype, device=values.device)
    _write(values, index, window, dense)
    return dense


def scattering_matrix(values: Tensor, index: Tensor, features: int) -> Tensor:
    """S [features, R*V] of the scatter form."""
    columns = values.shape[0] * values.shape[3]
    dense = torch.zeros((features, columns), dtype=values.dtype, device=values.device)
    _write(values, index, features, dense.t())
    return dense


def gather_gemm_forward(
    x: Tensor,
    values: Tensor,
    index: Tensor,
    perm: Tensor,
    bias: Tensor,
    window: int,
    activation: str,
) -> Tensor:
    """``act(x[:, perm] @ S.T + bias)``: x [M, I], values [R, E, G, V], index [R, E] -> [M, R*V]."""
    weight = gathering_matrix(values, index, window, x.shape[1])
    return dense_products.forward(x, weight, perm, bias, activation)


def gather_gemm_input_grad(
    grad: Tensor, values: Tensor, index: Tensor, perm: Tensor, window: int, in_features: int
) -> Tensor:
    """``grad @ S`` written through ``perm``: grad [M, R*V] -> [M, I]."""
    weight = gathering_matrix(values, index, window, in_features)
    return dense_products.input_grad(grad, weight, perm)


def gather_gemm_weight_grad(
    grad: Tensor, x: Tensor, index: Tensor, perm: Tensor, window: int, group: int
) -> Tensor:
    """The entries of ``grad.T @ x[:, perm]`` under the index: [R, E, G, V]."""
    return entries(dense_products.weight_grad(grad, x, perm), index, window, group)


def scatter_gemm_forward(
    x: Tensor,
    values: Tensor,
    index: Tensor,
    perm: Tensor,
    bias: Tensor,
    out_features: int,
    activation: str,
) -> Tensor:
    """The transposed form: x [M, R*V], values [R, E, G, V], index [R, E] -> [M, O]."""
    weight = scattering_matrix(values, index, out_features)
    return dense_products.forward(x, weight, perm, bias, activation)


def scatter_gemm_input_grad(grad: Tensor, values: Tensor, index: Tensor, perm: Tensor) -> Tensor:
    """The input's gradient in the transposed form: grad [M, O] -> [M, R*V]."""
    weight = scattering_matrix(values, index, grad.shape[1])
    return dense_products.input_grad(grad, weight, perm)


def scatter_gemm_weight_grad(
    grad: Tensor, x: Tensor, index: Tensor, perm: Tensor, group: int
) -> Tensor:
    """The values' gradient in the transposed form: [R, E, G, V]."""
    dense = dense_products.weight_grad(grad, x, perm)
    return entries(dense.t(), index, grad.shape[1], group)
