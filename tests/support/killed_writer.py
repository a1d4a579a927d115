"""Saves a model again and again while being killed, in children; prints what each kill left.

    python killed_writer.py FOLDER   # alone in its process, because it forks
"""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

import padst_fx
from padst_fx import atomic_file

KILLS = 20


def build(value: float = 0.0) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 8))
    with torch.no_grad():
        model[1].bias.fill_(value)
    return model


def save(path: Path, value: float) -> None:
    padst_fx.save(padst_fx.sparsify(build(value), "diag", 0.75, init="magnitude"), path)


def found(path: Path) -> float:
    """Which save the file is of; raises if it is broken."""
    return float(padst_fx.load(build, path)[1].bias[0])


def die() -> None:
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(60)


class HalfWritten:
    """A file whose process is killed in the middle of a write."""

    def __init__(self, path: Path, mode: str) -> None:
        self.file = path.open(mode)

    def __enter__(self) -> HalfWritten:
        return self

    def __exit__(self, *_: Any) -> None:
        self.file.close()

    def write(self, content: bytes) -> None:
        self.file.write(content[: len(content) // 2])
        self.file.flush()
        die()


def before(module: Any, name: str, at: int = 1) -> Callable[[], None]:
    """Die at the given call of a function, before it is carried out."""

    def install() -> None:
        real, calls = getattr(module, name), [0]

        def call(*arguments: Any) -> Any:
            calls[0] += 1
            if calls[0] == at:
                die()
            return real(*arguments)

        setattr(module, name, call)

    return install


STAGES = {
    "half written": lambda: setattr(atomic_file, "open", HalfWritten),
    "before the flush": before(os, "fsync"),
    "before the move": before(os, "replace"),
    "after the move": before(os, "fsync", at=2),
}


def in_child(work: Callable[[], Any]) -> int:
    """Exit status of a child: 0, minus the signal that ended it, or 1 after an OSError."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except OSError:
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def stopped_at(folder: Path, stage: str, polite: bool) -> dict[str, Any]:
    """What is there after a kill at a stage; `polite` processes turn the signal to an exit."""
    path = folder / "model.safetensors"
    save(path, 1.0)

    def work() -> None:
        if polite:
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(3))
        STAGES[stage]()
        try:
            save(path, 2.0)
        except SystemExit:
            os._exit(3)

    status = in_child(work)
    left = [other for other in folder.iterdir() if other != path]
    result = {"status": status, "value": found(path), "left": len(left)}
    for other in left:
        other.unlink()
    return result


def killed_at_random(folder: Path) -> list[float]:
    """A child saves on and on and is killed at some moment, many times over."""
    path, values = folder / "random.safetensors", []
    save(path, 0.0)
    start = time.perf_counter()
    save(path, 0.0)
    duration = time.perf_counter() - start
    for number in range(KILLS):
        written = path.stat().st_mtime_ns
        child = os.fork()
        if child == 0:
            count = 0.0
            while True:
                count += 1
                save(path, count)
        while path.stat().st_mtime_ns == written:  # however slow a busy machine is
            time.sleep(0.001)
        time.sleep(random.Random(number).uniform(0, 4 * duration))
        os.kill(child, signal.SIGTERM)
        os.waitpid(child, 0)
        values.append(found(path))
    return values


def full_disk(folder: Path) -> dict[str, Any]:
    """The system itself refuses the write."""
    path = folder / "full" / "model.safetensors"
    path.parent.mkdir()
    save(path, 1.0)

    def work() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
        save(path, 2.0)

    status = in_child(work)
    return {"status": status, "value": found(path), "left": len(list(path.parent.iterdir())) - 1}


def main() -> None:
    folder = Path(sys.argv[1])
    stages = folder / "stages"
    stages.mkdir()
    result = {
        "killed": {stage: stopped_at(stages, stage, polite=False) for stage in STAGES},
        "asked": {stage: stopped_at(stages, stage, polite=True) for stage in STAGES},
        "random": killed_at_random(folder),
        "full": full_disk(folder),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
