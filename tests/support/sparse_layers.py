"""Small sparse layers, one for every projection op, and their dense reference."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from padst_fx import Block, Diag, SparseLinear

STRUCTURES = {"shift": Diag(), "gather_gemm": Block(size=4), "scatter_gemm": Diag(width=4)}
OPS = tuple(STRUCTURES)


def sparse_layer(
    op: str,
    in_features: int = 16,
    out_features: int = 24,
    bias: bool = False,
    dtype: torch.dtype = torch.float64,
) -> SparseLinear:
    """A layer with a random permutation that computes with `op`."""
    torch.manual_seed(7)
    return SparseLinear(
        in_features,
        out_features,
        STRUCTURES[op],
        0.5,
        bias=bias,
        permutation="random",
        dtype=dtype,
    )


def with_activation(layer: SparseLinear, x: Tensor, activation: str) -> Tensor:
    """The layer's op with the activation already in it, and no bias."""
    absent = layer.values.new_empty(0)
    return layer.pattern.linear(x, layer.values, layer.index, layer.perm, absent, activation)


def dense_output(layer: SparseLinear, x: Tensor) -> Tensor:
    """What the layer computes, by dense float64 maths."""
    bias = None if layer.bias is None else layer.bias.double()
    return F.linear(x.double(), layer.dense_weight().double(), bias)
