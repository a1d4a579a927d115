"""What a sparse layer starts from: the present weights, or fresh ones."""

from __future__ import annotations

from math import sqrt

import torch
from torch import Tensor

INITS = ("auto", "magnitude", "random")
SAMPLE = 1 << 16
DEVIATIONS = 4.0


def check_init(init: str) -> str:
    """The name itself, or a `ValueError` that lists the valid ones."""
    if init not in INITS:
        raise ValueError(f"unknown init {init!r}; valid: {', '.join(map(repr, INITS))}")
    return init


def magnitudes(weight: Tensor, norms: Tensor | None = None) -> Tensor:
    """`|W[i, c]|`, or Wanda's `|W[i, c]| * norms[c]` (arXiv:2306.11695, section 3), float32."""
    size = weight.detach().float().abs()
    return size if norms is None else size * norms.to(size)


@torch.no_grad()
def looks_fresh(weight: Tensor) -> bool:
    """Whether an `[out, in]` weight looks like independent draws of one distribution.

    Then it is finite, holds no more exact zeros and no fewer distinct values than its dtype
    explains, and the mean squares of its rows (and columns) vary as chance has them vary, with
    a relative variance of `(kurtosis - 1) / length`: training makes them differ by more, a
    structure by less. Whatever fails a test is not fresh, so that trained weights are kept when
    in doubt: `nn.init.orthogonal_` and all-zero weights do not look fresh. Meta weights do.
    """
    if weight.is_meta:
        return True
    finite = bool(torch.isfinite(weight).all())
    if not finite or _has_many_zeros(weight) or _has_few_values(weight):
        return False
    energy = weight.double().square()
    energy -= energy.mean()
    variance = energy.square().mean()
    kurtosis = float(energy.pow(4).mean() / variance**2)
    energy /= variance.sqrt()
    return all(_varies_by_chance(energy, dimension, kurtosis) for dimension in (0, 1))


def _has_many_zeros(weight: Tensor) -> bool:
    """More than one by coincidence and what a draw with few digits rounds to zero."""
    zeros = weight.numel() - int(weight.count_nonzero())
    return zeros > 1 + 2 * torch.finfo(weight.dtype).eps * weight.numel()


def _has_few_values(weight: Tensor) -> bool:
    """Fewer distinct values than half of what as many uniform draws can have."""
    sample = weight[: max(1, SAMPLE // max(1, weight.shape[1]))]
    possible = min(sample.numel(), 1 / torch.finfo(weight.dtype).eps)
    return sample.unique().numel() < possible / 2


def _varies_by_chance(energy: Tensor, dimension: int, kurtosis: float) -> bool:
    """Whether means over `dimension` of standardised draws differ no more or less than usual."""
    lines, length = energy.mean(dim=dimension), energy.shape[dimension]
    if len(lines) < 2:
        return True
    excess = max(0.0, kurtosis - 3) / length
    freedom = 2 / (2 / (len(lines) - 1) + excess / len(lines))
    least, most = (_chi_square_per_freedom(freedom, z) for z in (-DEVIATIONS, DEVIATIONS))
    return least <= float(lines.var()) * length <= most


def _chi_square_per_freedom(freedom: float, deviations: float) -> float:
    """Wilson and Hilferty's quantile of a chi-square variable over its degrees of freedom."""
    spread = 2 / (9 * freedom)
    return max(0.0, 1 - spread + deviations * sqrt(spread)) ** 3
