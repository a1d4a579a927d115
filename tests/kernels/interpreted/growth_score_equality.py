"""The Triton growth score kernels: norms over the dense float64 gradient."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from kernel_checks import (
    GATHERS,
    SETTINGS,
    Gather,
    Setting,
    check_block_score,
    check_diag_score,
    check_nm_score,
    check_weight_score,
)
from triton_device import DEVICE, poisoned_memory

from padst_fx.kernels.growth_score import triton_launch

__all__ = ["poisoned_memory"]

# The last two are of several steps over tokens, which are copied through the permutation first.
SEVERAL_STEPS = [Setting(tokens=40), Setting(tokens=70, dtype=torch.bfloat16, bias=False)]
CHOSEN = [replace(setting, device=DEVICE) for setting in (*SETTINGS[:-1], *SEVERAL_STEPS)]
NM = {name: shape for name, shape in GATHERS.items() if shape.window}
NM["nm-tile-70"] = Gather(1, 1, 1, 70, 12, 4, torch.uint8)
DIAGONALS = [(53, 37, 1, 1), (37, 53, 1, 1), (72, 72, 1, 8), (40, 20, 4, 2), (9, 6, 3, 1)]
WIDE_DIAGONALS = [(48, 16, 16, 1), (16, 48, 16, 3)]


@pytest.mark.parametrize("shape", [*DIAGONALS, *WIDE_DIAGONALS], ids=str)
@pytest.mark.parametrize("setting", CHOSEN, ids=str)
def test_diagonals(shape: tuple[int, ...], setting: Setting) -> None:
    check_diag_score(triton_launch, *shape, setting)


@pytest.mark.parametrize("shape", [(20, 12, 4), (6, 9, 3), (80, 80, 80)], ids=str)
@pytest.mark.parametrize("setting", CHOSEN, ids=str)
def test_blocks(shape: tuple[int, int, int], setting: Setting) -> None:
    check_block_score(triton_launch, *shape, setting)


@pytest.mark.parametrize("shape", NM)
@pytest.mark.parametrize("setting", CHOSEN, ids=str)
def test_n_of_m(shape: str, setting: Setting) -> None:
    check_nm_score(triton_launch, NM[shape], setting)


def test_weights() -> None:
    check_weight_score(triton_launch, 7, 11, Setting(device=DEVICE))


def test_ties_go_to_the_smaller_slot() -> None:
    x = torch.tensor([[2.0, 2.0, 5.0, 2.0, 2.0, 1.0]], device=DEVICE)
    index = torch.tensor([[0, 2]], dtype=torch.uint8, device=DEVICE)
    perm, grad = torch.zeros(0, dtype=torch.int32, device=DEVICE), torch.ones(1, 1, device=DEVICE)
    scores, slots = triton_launch.nm_growth_score(grad, x, index, perm, 2, 6)
    assert scores.flatten().tolist() == [2.0, 2.0]
    assert slots.flatten().tolist() == [1.0, 3.0]


def test_not_a_number_is_chosen_and_shows() -> None:
    x = torch.tensor([[1.0, 3.0, float("nan"), 4.0]], device=DEVICE)
    index = torch.tensor([[0]], dtype=torch.uint8, device=DEVICE)
    perm, grad = torch.zeros(0, dtype=torch.int32, device=DEVICE), torch.ones(1, 1, device=DEVICE)
    scores, slots = triton_launch.nm_growth_score(grad, x, index, perm, 1, 4)
    assert scores.flatten().tolist() == [float("inf")]
    assert slots.flatten().tolist() == [2.0]
