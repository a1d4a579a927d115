"""Launching a Triton kernel on the device of its tensors, without synchronising."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

SATURATING_PROGRAMS = 512


def launch(kernel: Any, grid: tuple[int, int], *arguments: Tensor | int, **constants: Any) -> None:
    """Run ``kernel`` over ``grid``; the first argument is a tensor on the device to use."""
    if 0 in grid:
        return
    with torch.cuda.device_of(arguments[0]):
        kernel[grid](*arguments, **constants)


def token_splits(programs: int, tokens: int, shortest: int) -> int:
    """Parts to cut a sum over tokens into, so that ``programs`` of each part fill a device.

    A power of two; no part is shorter than ``shortest`` tokens. A sum in parts is added up in a
    fixed order afterwards, so results do not change from run to run.
    """
    splits = 1
    while programs * splits * 2 <= SATURATING_PROGRAMS and shortest * splits * 2 <= tokens:
        splits *= 2
    return splits
