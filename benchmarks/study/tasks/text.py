"""The source text of Python's standard library, byte by byte."""

from __future__ import annotations

import hashlib
import math
import sysconfig
from functools import cache
from pathlib import Path
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.study.models import GPT
from benchmarks.study.tasks.task import Task, place

HELD_OUT = 10  # one file of so many
EVALUATED = 2**15  # bytes
PACKAGES = ("asyncio", "collections", "concurrent", "email", "html", "http", "importlib", "json",
            "logging", "multiprocessing", "unittest", "urllib", "xml")  # fmt: skip


class Text(Task):
    """Perplexity per byte of a GPT on files that it was not trained on.

    The files are the modules of the standard library that every build has, without tests. A file
    is held out if the hash of its name says so, so the split is the same wherever the same Python
    is; other versions of Python have other texts.
    """

    metric: ClassVar[str] = "perplexity"
    higher_is_better: ClassVar[bool] = False
    batch: ClassVar[int] = 8

    def __init__(self, depth: int, heads: int, length: int) -> None:
        self._depth = depth
        self._heads = heads
        self._length = length

    def model(self, size: int) -> nn.Module:
        return GPT(size, self._depth, self._heads, self._length)

    def inputs(self, seed: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        return self._windows(_texts()[0], generator)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs.flatten(0, 1), targets.flatten())

    @torch.no_grad()
    def evaluate(self, model: nn.Module, seed: int) -> float:
        generator = torch.Generator().manual_seed(0)  # the same windows for every run
        losses = []
        for _ in range(EVALUATED // (self.batch * self._length)):
            windows = self._windows(_texts()[1], generator)
            inputs, targets = (part.to(place(model)) for part in windows)
            losses.append(float(self.loss(model(inputs), targets)))
        return math.exp(sum(losses) / len(losses))

    def _windows(self, text: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        last = len(text) - self._length - 1
        starts = torch.randint(last, (self.batch, 1), generator=generator)
        windows = text[starts + torch.arange(self._length + 1)].long()
        return windows[:, :-1], windows[:, 1:]


@cache
def _texts() -> tuple[Tensor, Tensor]:
    """Bytes to train on and bytes held out."""
    root = Path(sysconfig.get_paths()["stdlib"])
    files = [*root.glob("*.py"), *(f for name in PACKAGES for f in (root / name).rglob("*.py"))]
    parts: tuple[list[bytes], list[bytes]] = ([], [])
    for file in sorted(files):
        name = file.relative_to(root).as_posix()
        held_out = hashlib.sha256(name.encode()).digest()[0] % HELD_OUT == 0
        parts[held_out].append(file.read_bytes())
    training, held = (torch.frombuffer(bytearray(b"\n".join(part)), dtype=torch.uint8)
                      for part in parts)  # fmt: skip
    return training, held
