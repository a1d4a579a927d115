"""What a sparse layer starts from: the present weights, or fresh ones."""

from __future__ import annotations

from torch import Tensor

INITS = ("auto", "magnitude", "random")
TRAINED_FACTOR = 1.5


def check_init(init: str) -> str:
    """The name itself, or a `ValueError` that lists the valid ones."""
    if init not in INITS:
        raise ValueError(f"unknown init {init!r}; valid: {', '.join(map(repr, INITS))}")
    return init


def choose_init(init: str, weight: Tensor) -> str:
    """`"magnitude"` or `"random"`; `"auto"` is random where the weight looks freshly drawn."""
    if init != "auto":
        return init
    return "random" if looks_fresh(weight) else "magnitude"


def looks_fresh(weight: Tensor) -> bool:
    """Whether an `[out, in]` weight looks like independent draws of one distribution.

    Then the mean squares of its rows (and columns) vary only by chance, with a relative
    variance of `(kurtosis - 1) / length`; training makes them differ by more. Constant and
    meta weights count as fresh.
    """
    if weight.is_meta:
        return True
    squares = weight.detach().double().square()
    mean = squares.mean()
    if mean == 0:
        return True
    spread = squares.var(unbiased=False) / mean**2
    for dimension, length in ((1, weight.shape[1]), (0, weight.shape[0])):
        lines = squares.mean(dim=dimension)
        if len(lines) > 1 and lines.std() / mean > TRAINED_FACTOR * (spread / length) ** 0.5:
            return False
    return True
