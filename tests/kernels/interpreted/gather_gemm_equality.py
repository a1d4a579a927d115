"""The Triton gather-GEMM and scatter-GEMM kernels, against dense float64 maths."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from kernel_checks import (
    GATHERS,
    SCATTERS,
    SETTINGS,
    Gather,
    Setting,
    check_gather,
    check_scatter,
)
from triton_device import DEVICE, own_kernels, poisoned_memory

from padst_fx.kernels.gather_gemm import triton_dense, triton_launch

__all__ = ["own_kernels", "poisoned_memory"]

MANY_TOKENS = Setting(tokens=70, dtype=torch.bfloat16, activation="silu", layout="columns")
CHOSEN = [*SETTINGS[:-1], MANY_TOKENS]
# The interpreter is slow: there each shape meets three of the settings.
TAKEN = (0, 1, 3) if DEVICE == "cpu" else range(len(CHOSEN))
LARGE = ("block-80", "nm-1:300")
LARGE_SETTINGS = (SETTINGS[0], SETTINGS[2])
SPLIT = Setting(tokens=520, dtype=torch.float16, perm=False)


def pairs(shapes: dict[str, Gather]) -> list[tuple[str, Setting]]:
    names = [name for name in shapes if name not in LARGE]
    return [(name, CHOSEN[(i + j) % len(CHOSEN)]) for i, name in enumerate(names) for j in TAKEN]


@pytest.mark.parametrize(("shape", "setting"), pairs(GATHERS), ids=str)
def test_gather_equals_dense_maths(shape: str, setting: Setting) -> None:
    check_gather(triton_launch, GATHERS[shape], replace(setting, device=DEVICE))


@pytest.mark.parametrize(("shape", "setting"), pairs(SCATTERS), ids=str)
def test_scatter_equals_dense_maths(shape: str, setting: Setting) -> None:
    check_scatter(triton_launch, SCATTERS[shape], replace(setting, device=DEVICE))


@pytest.mark.parametrize("shape", ["one-block", "block-16"])
def test_tokens_in_several_splits(shape: str) -> None:
    check_gather(triton_launch, GATHERS[shape], replace(SPLIT, device=DEVICE))
    check_scatter(triton_launch, GATHERS[shape], replace(SPLIT, device=DEVICE))


@pytest.mark.parametrize("setting", LARGE_SETTINGS, ids=str)
def test_large_shapes(setting: Setting) -> None:
    for name in LARGE:
        check_gather(triton_launch, GATHERS[name], replace(setting, device=DEVICE))
    check_scatter(triton_launch, GATHERS["block-80"], replace(setting, device=DEVICE))


# In 16 bits an activation there would be of a result that was rounded before.
THROUGH_DENSE = (
    Setting(tokens=70, activation="silu", layout="columns"),
    Setting(dtype=torch.bfloat16, layout="strided"),
    Setting(tokens=40, dtype=torch.float16, perm=False, bias=False),
)


@pytest.mark.parametrize("setting", THROUGH_DENSE, ids=str)
def test_through_a_dense_matrix(setting: Setting) -> None:
    for name in ("block-4", "group-4-tile-20", "nm-1:10-short", "nm-3:6-tile-3"):
        check_gather(triton_dense, GATHERS[name], replace(setting, device=DEVICE))
    for name in ("block-4", "group-4-tile-20", "diag-wide-8"):
        check_scatter(triton_dense, SCATTERS[name], replace(setting, device=DEVICE))
