"""What a tile is chosen for: a kernel, a dtype, a number of tokens and the sizes it works on."""

from __future__ import annotations

from typing import NamedTuple

import torch

from padst_fx.kernels.integers import power_of_two

TOKEN_CLASSES = (1, 8, 16, 64, 256, 1024, 4096)
DTYPE_CLASSES = {torch.bfloat16: "half", torch.float16: "half", torch.float32: "single"}
DTYPES = {"half": torch.bfloat16, "single": torch.float32, "double": torch.float64}
Tiles = dict[str, int]


class Problem(NamedTuple):
    """One launch, as far as its tile depends on it.

    ``sizes`` are those that ``SIZES`` in `calculated.py` names for the kernel.
    """

    kernel: str
    dtype: torch.dtype
    tokens: int
    sizes: tuple[int, ...]

    @property
    def dtype_class(self) -> str:
        return DTYPE_CLASSES.get(self.dtype, "double")

    @property
    def token_class(self) -> int:
        """The smallest class that holds the tokens; the largest holds all."""
        fitting = [most for most in TOKEN_CLASSES if self.tokens <= most]
        return fitting[0] if fitting else TOKEN_CLASSES[-1]

    def key(self) -> str:
        """The shape class: sizes rounded up to powers of two. One entry of a measured table."""
        sizes = "x".join(str(power_of_two(size)) for size in self.sizes)
        return f"{self.kernel}/{self.dtype_class}/{self.token_class}/{sizes}"
