"""One run in a process of its own."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.machine import describe
from benchmarks.study.runs import Run
from benchmarks.study.training import train


def row(run: Run, threads: int, device: str) -> dict[str, Any]:
    """What the run gave, with the machine, versions and commit."""
    torch.set_num_threads(threads)
    return {**train(run, device), **describe()}
