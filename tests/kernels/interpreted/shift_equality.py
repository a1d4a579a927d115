"""The Triton shift kernels, against dense float64 maths."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from kernel_checks import SETTINGS, SHIFTS, Setting, check_shift
from triton_device import DEVICE, own_kernels, poisoned_memory

from padst_fx.kernels.shift import triton_dense, triton_launch

__all__ = ["own_kernels", "poisoned_memory"]

MANY_TOKENS = Setting(tokens=70, activation="silu", layout="columns")


@pytest.mark.parametrize("shape", SHIFTS)
@pytest.mark.parametrize("setting", [*SETTINGS[:-1], MANY_TOKENS], ids=str)
def test_equals_dense_maths(shape: str, setting: Setting) -> None:
    check_shift(triton_launch, *SHIFTS[shape], replace(setting, device=DEVICE))


# In 16 bits an activation there would be of a result that was rounded before.
THROUGH_DENSE = (
    MANY_TOKENS,
    Setting(dtype=torch.bfloat16, layout="strided"),
    Setting(tokens=40, dtype=torch.float16, perm=False, bias=False),
)


# Beyond 64 tokens diagonals come four at a time, and the interpreter takes them one by one.
@pytest.mark.parametrize(("tokens", "diagonals"), [(1, 37), (40, 9), (70, 9)])
def test_more_features_and_diagonals_than_a_tile(tokens: int, diagonals: int) -> None:
    setting = Setting(tokens=tokens, dtype=torch.bfloat16, device=DEVICE)
    check_shift(triton_launch, 150, 70, setting, diagonals=diagonals)
    check_shift(triton_launch, 70, 150, setting, diagonals=diagonals)


@pytest.mark.parametrize("shape", SHIFTS)
@pytest.mark.parametrize("setting", THROUGH_DENSE, ids=str)
def test_through_a_dense_matrix(shape: str, setting: Setting) -> None:
    check_shift(triton_dense, *SHIFTS[shape], replace(setting, device=DEVICE))
