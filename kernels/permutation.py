"""Reading and writing features through a permutation; one of length 0 is the identity."""

from __future__ import annotations

import torch
from torch import Tensor


def permuted(x: Tensor, perm: Tensor) -> Tensor:
    """``x[..., perm]``, or ``x`` itself without a permutation."""
    return x.index_select(-1, perm.long()) if perm.numel() else x


def unpermuted(x: Tensor, perm: Tensor) -> Tensor:
    """The tensor ``y`` with ``y[..., perm] = x``, or ``x`` itself without a permutation."""
    if not perm.numel():
        return x
    return torch.empty_like(x).index_copy_(-1, perm.long(), x)
