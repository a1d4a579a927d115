"""Projections of every kernel, as meta tensors."""

from __future__ import annotations

import torch
from torch import Tensor

from padst_fx.export.tensorrt.step import Projection

CPU = torch.device("cpu")


def meta(*shape: int, dtype: torch.dtype = torch.int32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def projection(
    kind: str, tokens: int, permuted: bool = True, dtype: torch.dtype = torch.bfloat16
) -> Projection:
    """One of `KINDS` at a number of tokens."""
    op, features, values, index, bias, settings = KINDS[kind]
    return Projection(
        op,
        meta(tokens, features, dtype=dtype),
        meta(*values, dtype=dtype),
        meta(*index),
        meta(features if permuted else 0),
        meta(bias, dtype=dtype),
        settings,
    )


KINDS: dict[str, tuple] = {
    "diag": ("shift", 48, (5, 48), (5,), 96, (96, "gelu")),
    "block": ("gather_gemm", 64, (4, 2, 16, 16), (4, 2), 0, (64, "none")),
    "nm": ("gather_gemm", 64, (48, 16, 1, 1), (48, 16), 48, (4, "none")),
    "wide_diag": ("scatter_gemm", 64, (4, 2, 16, 16), (4, 2), 128, (128, "silu")),
    "narrow_diag": ("scatter_gemm", 64, (16, 2, 4, 4), (16, 2), 128, (128, "none")),
}
