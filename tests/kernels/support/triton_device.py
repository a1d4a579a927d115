"""Where a Triton equality suite runs: interpreted on the CPU, or compiled on a GPU."""

from __future__ import annotations

import os
from collections.abc import Iterator

import bfloat16_dot
import pytest
import torch
from torch import Tensor

from padst_fx.kernels.tiles.problem import Problem, Tiles
from padst_fx.kernels.tiles.table import choosing

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
if INTERPRETED:
    bfloat16_dot.install()


@pytest.fixture(autouse=True)
def poisoned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """New floating tensors hold NaN, so that an output lane nobody writes shows."""
    empty = torch.empty

    def poisoned(*args: object, **kwargs: object) -> Tensor:
        tensor = empty(*args, **kwargs)
        return tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor

    monkeypatch.setattr(torch, "empty", poisoned)


def _never_dense(problem: Problem) -> Tiles | None:
    return {"DENSE": 0} if problem.kernel.startswith("dense_") else None


@pytest.fixture(autouse=True)
def own_kernels() -> Iterator[None]:
    """Products take the kernels under test, also where cuBLAS on a dense matrix is faster."""
    with choosing(_never_dense):
        yield
