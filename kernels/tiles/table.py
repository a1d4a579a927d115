"""Looking a tile up: measured for the device if there is a file for it, else calculated."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import torch

from padst_fx.kernels.tiles.calculated import calculated
from padst_fx.kernels.tiles.problem import Problem, Tiles

MEASURED = Path(__file__).parent / "measured"
REMEMBERED = 4096
Choice = Callable[[Problem], Tiles | None]
_CHOICE: ContextVar[Choice | None] = ContextVar("choice_of_tiles", default=None)


def lookup(device: torch.device, problem: Problem) -> Tiles:
    """The tile to launch with; a dictionary look-up from the second call on."""
    choose = _CHOICE.get()
    chosen = choose(problem) if choose is not None else None
    return chosen if chosen is not None else tabled(device, problem)


@contextmanager
def choosing(choose: Choice) -> Iterator[None]:
    """Within it, ``choose`` sees every problem first; where it returns None the table decides."""
    token = _CHOICE.set(choose)
    try:
        yield
    finally:
        _CHOICE.reset(token)


@contextmanager
def forced(kernel: str, tiles: Tiles) -> Iterator[None]:
    """Within it, ``kernel`` runs with ``tiles``: how a candidate is measured."""
    with choosing(lambda problem: tiles if problem.kernel == kernel else None):
        yield


@functools.lru_cache(maxsize=REMEMBERED)
def tabled(device: torch.device, problem: Problem) -> Tiles:
    """The measured tile of the device, else the calculated one."""
    if device.type == "cuda":
        measured = read(torch.cuda.get_device_name(device)).get(problem.key())
        if measured is not None:
            return measured
    return calculated(problem)


def forget() -> None:
    """Read the measured tables anew at the next look-up."""
    tabled.cache_clear()
    read.cache_clear()


def path_of(device_name: str) -> Path:
    """The measured table of a device: `measured/nvidia_h100_80gb_hbm3.json`."""
    return MEASURED / (re.sub(r"[^a-z0-9]+", "_", device_name.lower()).strip("_") + ".json")


@functools.cache
def read(device_name: str) -> dict[str, Tiles]:
    """The measured tiles of a device by `Problem.key`; none where it was never measured."""
    path = path_of(device_name)
    if not path.exists():
        return {}
    tiles: dict[str, Tiles] = json.loads(path.read_text())["tiles"]
    return tiles


def write(device_name: str, tiles: dict[str, Tiles], versions: dict[str, Any]) -> Path:
    """Write a device's measured tiles with what they were measured with; returns the path."""
    MEASURED.mkdir(exist_ok=True)
    path = path_of(device_name)
    content = {"device": device_name, **versions, "tiles": dict(sorted(tiles.items()))}
    path.write_text(json.dumps(content, indent=1) + "\n")
    forget()
    return path
