"""Launches of the Triton kernels for width-1 wrapped diagonals.

Tiles come from the shapes alone, nothing is tuned or read back: safe under CUDA graphs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from padst_fx.kernels.activation import check_name
from padst_fx.kernels.integers import ceil_div
from padst_fx.kernels.precision import accumulation_dtype
from padst_fx.kernels.triton_call import launch, token_splits


def product_tiles(tokens: int, dtype: torch.dtype) -> dict[str, int]:
    """Tile of the product: many diagonals at once for few tokens, many tokens otherwise."""
    if tokens <= 4:
        return {"BLOCK_M": 1, "BLOCK_F": 32, "BLOCK_K": 32, "num_warps": 4}
    if tokens <= 64:
        return {"BLOCK_M": 4, "BLOCK_F": 64, "BLOCK_K": 8, "num_warps": 4}
    features = 64 if dtype == torch.float64 else 128
    return {"BLOCK_M": 32, "BLOCK_F": features, "BLOCK_K": 1, "num_warps": 4}


def weight_grad_tiles(tokens: int) -> dict[str, int]:
    """Tile of the weight gradient: a few diagonals share what they read of the shorter side."""
    if tokens <= 4:
        return {"BLOCK_M": 1, "BLOCK_F": 128, "BLOCK_K": 8, "num_warps": 4}
    return {"BLOCK_M": 8, "BLOCK_F": 128, "BLOCK_K": 4, "num_warps": 4}


def _product(
    source: Tensor,
    values: Tensor,
    offsets: Tensor,
    perm: Tensor,
    bias: Tensor,
    result_features: int,
    activation: str,
    spread: bool,
    writes_perm: bool,
) -> Tensor:
    from padst_fx.kernels.shift.triton_kernels import shift_product_kernel

    tokens, source_features = source.shape
    result = torch.empty((tokens, result_features), dtype=source.dtype, device=source.device)
    tiles = product_tiles(tokens, source.dtype)
    grid = (ceil_div(result_features, tiles["BLOCK_F"]), ceil_div(tokens, tiles["BLOCK_M"]))
    launch(
        shift_product_kernel,
        grid,
        source,
        values.contiguous(),
        offsets.contiguous(),
        perm.contiguous(),
        bias.contiguous(),
        tokens,
        source_features,
        result_features,
        offsets.shape[0],
        source.stride(0),
        source.stride(1),
        result,
        SPREAD=spread,
        READ_PERM=perm.numel() > 0 and not writes_perm,
        WRITE_PERM=perm.numel() > 0 and writes_perm,
        HAS_BIAS=bias.numel() > 0,
        ACTIVATION=activation,
        WIDE=source.dtype == torch.float64,
        **tiles,
    )
    return result


def shift_forward(
    x: Tensor,
    values: Tensor,
    offsets: Tensor,
    perm: Tensor,
    bias: Tensor,
    out_features: int,
    activation: str,
) -> Tensor:
    """``act(x[:, perm] @ S.T + bias)``: x [M, I], values [K, D], offsets [K] -> [M, O]."""
    check_name(activation)
    spread = out_features >= x.shape[1]
    return _product(x, values, offsets, perm, bias, out_features, activation, spread, False)


def shift_input_grad(
    grad: Tensor, values: Tensor, offsets: Tensor, perm: Tensor, in_features: int
) -> Tensor:
    """``grad @ S`` written through ``perm``: grad [M, O] -> [M, I]."""
    spread = grad.shape[1] < in_features
    no_bias = values.new_empty(0)
    return _product(grad, values, offsets, perm, no_bias, in_features, "none", spread, True)


def shift_weight_grad(grad: Tensor, x: Tensor, offsets: Tensor, perm: Tensor) -> Tensor:
    """The entries of ``grad.T @ x[:, perm]`` on the diagonals: [K, D]."""
    from padst_fx.kernels.shift.triton_kernels import shift_weight_grad_kernel

    tall = grad.shape[1] >= x.shape[1]
    still, moving = (x, grad) if tall else (grad, x)
    tokens, short = still.shape
    diagonals = offsets.shape[0]
    tiles = weight_grad_tiles(tokens)
    programs = ceil_div(short, tiles["BLOCK_F"]) * ceil_div(diagonals, tiles["BLOCK_K"])
    splits = token_splits(programs, tokens, 64)
    dtype = accumulation_dtype(grad.dtype) if splits > 1 else grad.dtype
    result = torch.empty((splits, diagonals, short), dtype=dtype, device=grad.device)
    launch(
        shift_weight_grad_kernel,
        (programs, splits),
        still,
        moving,
        offsets.contiguous(),
        perm.contiguous(),
        tokens,
        ceil_div(tokens, splits),
        short,
        moving.shape[1],
        diagonals,
        still.stride(0),
        still.stride(1),
        moving.stride(0),
        moving.stride(1),
        result,
        STILL_PERM=perm.numel() > 0 and tall,
        MOVING_PERM=perm.numel() > 0 and not tall,
        WIDE=grad.dtype == torch.float64,
        **tiles,
    )
    return result[0] if splits == 1 else result.sum(0).to(grad.dtype)
