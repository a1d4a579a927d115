"""Walking over the tokens of an activation in chunks that stay in cache."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from padst_fx.kernels.permutation import permuted
from padst_fx.kernels.precision import accumulation_dtype

TOKENS = 256


def token_slices(tokens: int) -> Iterator[slice]:
    """Slices of at most ``TOKENS`` that cover ``range(tokens)``."""
    for start in range(0, tokens, TOKENS):
        yield slice(start, min(start + TOKENS, tokens))


def feature_major(x: Tensor, perm: Tensor) -> Tensor:
    """``x[:, perm]`` transposed, contiguous, in the accumulation dtype: [features, tokens]."""
    return permuted(x, perm).to(accumulation_dtype(x.dtype)).t().contiguous()
