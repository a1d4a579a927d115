"""Products with a sparse weight that is written out as a dense matrix first, on matrix units.

Narrow structures leave matrix units idle, and with many tokens the ordinary units of a GPU are
slower at a tenth of the operations than matrix units at all of them. Writing the weight out takes
memory for one dense matrix while the product runs, and a pass over it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from padst_fx.kernels import activation as activations
from padst_fx.kernels import triton_layout
from padst_fx.kernels.tiles.problem import Problem
from padst_fx.kernels.tiles.table import lookup


def is_faster(part: str, source: Tensor, out: int, inputs: int, weights: int, width: int) -> bool:
    """Whether the table sends ``part`` of a layer [out, inputs] through a dense matrix.

    ``width`` is the edge of the dense blocks that the layer's own kernel multiplies, 1 without any.
    """
    if not source.is_cuda:
        return False
    problem = Problem(f"dense_{part}", source.dtype, source.shape[0], (out, inputs, weights, width))
    return bool(lookup(source.device, problem)["DENSE"])


def forward(x: Tensor, weight: Tensor, perm: Tensor, bias: Tensor, activation: str) -> Tensor:
    """``act(x[:, perm] @ weight.T + bias)``: x [M, I], weight [O, I] -> [M, O]."""
    x = triton_layout.permuted_rows(x, perm if perm.numel() else None)
    y = F.linear(x, weight, bias if bias.numel() else None)
    return activations.apply(activation, y)


def input_grad(grad: Tensor, weight: Tensor, perm: Tensor) -> Tensor:
    """``grad @ weight`` written through ``perm``: grad [M, O] -> [M, I]."""
    dx = torch.mm(grad, weight)
    return triton_layout.unpermuted(dx, perm) if perm.numel() else dx


def weight_grad(grad: Tensor, x: Tensor, perm: Tensor) -> Tensor:
    """``grad.T @ x[:, perm]``: [O, I]."""
    return torch.mm(grad.t(), triton_layout.permuted_rows(x, perm if perm.numel() else None))
