"""A small model with every structure and kind of permutation, and processes that run it."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import padst_fx
from padst_fx import NM, Block, Diag, SparseLinear, Unstructured

WIDTH = 32
HIDDEN = 64

# Up and down, so that wide diagonals are of both forms.
CHOICES = (
    (Diag(), "random"),
    (Diag(width=8), "learned"),
    (Block(8), "random"),
    (NM(1, 2), "identity"),
    (NM(2, 4, tile=8), "random"),
    (Unstructured(), "random"),
)


class EveryStructure(nn.Module):
    """MLPs side by side, one for each of `CHOICES`, behind a norm.

    Side by side, because every loop between our ops is some seconds of a C++ compiler.
    """

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.up = nn.ModuleList(
            SparseLinear(WIDTH, HIDDEN, s, 0.5, permutation=p) for s, p in CHOICES
        )
        self.down = nn.ModuleList(
            SparseLinear(HIDDEN, WIDTH, s, 0.5, permutation=p) for s, p in CHOICES
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        for up, down in zip(self.up, self.down, strict=True):
            x = x + down(F.gelu(up(y)))
        return x


def every_structure() -> EveryStructure:
    """In evaluation mode, the same in every process; what can be learned is as if it were."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = EveryStructure().eval()
        for layer in (*model.up, *model.down):
            if layer.permutation == "learned":
                layer.perm.copy_(torch.randperm(layer.in_features))
    return model


def inputs(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, WIDTH, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def dense_result(model: nn.Module, x: Tensor) -> Tensor:
    """What the model computes with plain dense weights in float64."""
    return padst_fx.densify(copy.deepcopy(model)).double()(x.double())


def run_python(script: str, *arguments: str | Path, **environment: str) -> str:
    """The output of a script in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
