"""Results of the C++ kernels in 16 bits are the nearest ones, ties to even."""

from __future__ import annotations

import native
import pytest
import torch
from torch import Tensor

NO_PERM = torch.empty(0, dtype=torch.int32)
EMPTY = {dtype: torch.empty(0, dtype=dtype) for dtype in (torch.bfloat16, torch.float16)}
# 16 full vectors of any width, and some lanes more.
COUNT = 16 * 16 + 5


def factors(dtype: torch.dtype, repeats: int) -> list[tuple[Tensor, Tensor]]:
    """Pairs whose products are ties, subnormal, too large, infinite or no number, among others."""
    generator = torch.Generator().manual_seed(0)
    mantissa = 2 ** (7 if dtype == torch.bfloat16 else 10)
    pairs = []
    for _ in range(repeats):
        whole = torch.randint(0, mantissa, (2, COUNT), generator=generator) / mantissa + 1
        powers = torch.randint(-12, 9, (2, COUNT), generator=generator)
        left, right = (whole * 2.0**powers).to(dtype)
        # 1.5 times an odd mantissa lies between two numbers, at equal distance.
        left[::5] = 1.5
        left[1::50], left[2::50], left[3::50] = torch.inf, -torch.inf, torch.nan
        left[4::50] = right[4::50] = torch.finfo(dtype).max
        pairs.append((left, right))
    return pairs


def exact(left: Tensor, right: Tensor) -> Tensor:
    """Products of two 16-bit numbers fit float32: only the last step rounds."""
    return (left.float() * right.float()).to(left.dtype)


def assert_same(got: Tensor, want: Tensor) -> None:
    torch.testing.assert_close(got.flatten(), want, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_stored_vectors(dtype: torch.dtype) -> None:
    offset = torch.zeros(1, dtype=torch.int32)
    for left, right in factors(dtype, 20):
        x, values = left[None], right[None]
        got = native.shift_forward(x, values, offset, NO_PERM, EMPTY[dtype], COUNT, "none")
        assert_same(got, exact(left, right))
        got = native.shift_weight_grad(x, values, offset, NO_PERM)
        assert_same(got, exact(left, right))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("tile", [1, 3])
def test_stored_numbers(dtype: torch.dtype, tile: int) -> None:
    # One entry a row block: column 0 of its only window.
    index = torch.zeros(COUNT // tile, 1, dtype=torch.uint8)
    for left, right in factors(dtype, 40):
        grad, x = left[None, : COUNT // tile * tile], right[None, :1]
        got = native.gather_gemm_weight_grad(grad, x, index, NO_PERM, 1, 1)
        assert_same(got, exact(grad[0], x[0]))
