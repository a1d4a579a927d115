"""Width-1 wrapped diagonals in plain torch: slices of feature-major chunks of tokens.

Beside the output only chunks of ``TOKENS`` tokens are allocated, and values in the accumulation
dtype.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from padst_fx.kernels.activation import apply, check_name
from padst_fx.kernels.permutation import unpermuted
from padst_fx.kernels.precision import accumulation_dtype
from padst_fx.kernels.token_chunks import feature_major, token_slices


def _segments(offset: int, short: int, long: int) -> Iterator[tuple[slice, slice]]:
    """Pairs (t, (t + offset) % long) for t in [0, short), as one or two pairs of slices."""
    head = min(short, long - offset)
    yield slice(0, head), slice(offset, offset + head)
    if head < short:
        yield slice(head, short), slice(0, short - head)


def _collect(source: Tensor, values: Tensor, offsets: list[int], short: int) -> Tensor:
    """From [long, M] to [short, M]: entry t adds up ``values[k, t] * source[t + offset]``."""
    result = source.new_zeros(short, source.shape[1])
    for weights, offset in zip(values.unsqueeze(-1), offsets, strict=True):
        for t, moved in _segments(offset, short, source.shape[0]):
            result[t].addcmul_(source[moved], weights[t])
    return result


def _spread(source: Tensor, values: Tensor, offsets: list[int], long: int) -> Tensor:
    """From [short, M] to [long, M]: entry t + offset adds up ``values[k, t] * source[t]``."""
    result = source.new_zeros(long, source.shape[1])
    for weights, offset in zip(values.unsqueeze(-1), offsets, strict=True):
        for t, moved in _segments(offset, source.shape[0], long):
            result[moved].addcmul_(source[t], weights[t])
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
    wide = accumulation_dtype(x.dtype)
    weights, shifts = values.to(wide), offsets.tolist()
    product = _spread if out_features >= x.shape[1] else _collect
    result = x.new_empty(x.shape[0], out_features)
    for tokens in token_slices(x.shape[0]):
        pre = product(feature_major(x[tokens], perm), weights, shifts, out_features)
        if bias.numel():
            pre += bias.to(wide)[:, None]
        result[tokens] = apply(activation, pre).t()
    return result


def shift_input_grad(
    grad: Tensor, values: Tensor, offsets: Tensor, perm: Tensor, in_features: int
) -> Tensor:
    """``grad @ S`` written through ``perm``: grad [M, O] -> [M, I]."""
    weights, shifts = values.to(accumulation_dtype(grad.dtype)), offsets.tolist()
    product = _collect if grad.shape[1] >= in_features else _spread
    result = grad.new_empty(grad.shape[0], in_features)
    for tokens in token_slices(grad.shape[0]):
        straight = product(feature_major(grad[tokens], perm[:0]), weights, shifts, in_features)
        result[tokens] = unpermuted(straight.t(), perm)
    return result


def shift_weight_grad(grad: Tensor, x: Tensor, offsets: Tensor, perm: Tensor) -> Tensor:
    """The entries of ``grad.T @ x[:, perm]`` on the diagonals: [K, D]."""
    out_features, in_features = grad.shape[1], x.shape[1]
    short, long = sorted((out_features, in_features))
    wide = accumulation_dtype(grad.dtype)
    result = grad.new_zeros(offsets.shape[0], short, dtype=wide)
    shifts = offsets.tolist()
    for tokens in token_slices(grad.shape[0]):
        still = feature_major(grad[tokens], perm[:0])
        moving = feature_major(x[tokens], perm)
        if out_features >= in_features:
            still, moving = moving, still
        for total, offset in zip(result, shifts, strict=True):
            for t, moved in _segments(offset, short, long):
                total[t] += (still[t] * moving[moved]).sum(1)
    return result.to(grad.dtype)
