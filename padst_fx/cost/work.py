"""What one forward of a projection has to do, whatever the machine."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from numbers import Integral
from typing import Any

from padst_fx.structures import Pattern

DENSE = "dense"
TILE = 8


@dataclass(frozen=True)
class Work:
    """A projection as the cost model sees it.

    `structure` is the structure with its parameters, or "dense". `family` says what kind of loop
    computes it: "dense", "masked" (a dense product with a masked weight), "diagonals", "tiles"
    (rows share their columns, 8 or more at a time) or "slots" (fewer). `width` is that number of
    rows. `nonzeros` are the weights stored.
    """

    structure: str
    family: str
    out_features: int
    in_features: int
    nonzeros: int
    index_bytes: int = 0
    width: int = 1

    @classmethod
    def dense(cls, out_features: int, in_features: int) -> Work:
        """A dense projection."""
        return cls(DENSE, DENSE, out_features, in_features, out_features * in_features)

    @classmethod
    def of(cls, pattern: Pattern) -> Work:
        """A sparse one."""
        shape = (pattern.out_features, pattern.in_features)
        index_bytes = prod(pattern.index_shape) * pattern.index_dtype.itemsize
        name = repr(pattern.structure)
        if pattern.kernel == "masked dense":
            return cls(name, "masked", *shape, prod(shape), index_bytes)
        if pattern.kernel == "shift":
            return cls(name, "diagonals", *shape, pattern.nonzeros, index_bytes)
        width = pattern.values_shape[-1]
        family = "tiles" if width >= TILE else "slots"
        return cls(name, family, *shape, pattern.nonzeros, index_bytes, width)

    @property
    def is_dense(self) -> bool:
        """Whether a dense product computes it."""
        return self.family in (DENSE, "masked")

    def bytes_moved(self, tokens: int, itemsize: int) -> int:
        """Bytes that must be read or written: weights, index, inputs and outputs, each once.

        A masked weight is read, written and read again.
        """
        weights = self.nonzeros * itemsize * (3 if self.family == "masked" else 1)
        return weights + self.index_bytes + self.activations(tokens) * itemsize

    def activations(self, tokens: int) -> int:
        """Inputs and outputs, in elements."""
        return tokens * (self.in_features + self.out_features)

    def flops(self, tokens: int) -> int:
        """Multiplications and additions."""
        return 2 * self.nonzeros * tokens


def check_tokens(argument: str, value: Any) -> int:
    """A number of tokens, or a `ValueError` that names the argument."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
        raise ValueError(f"{argument} must be a positive integer (of tokens), got {value!r}")
    return int(value)


def counted(tokens: int) -> str:
    """ "1 token", "16 tokens"."""
    return f"{tokens} token{'' if tokens == 1 else 's'}"
