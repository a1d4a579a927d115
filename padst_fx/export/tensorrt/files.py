"""Writing an engine and what belongs to it, whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

from padst_fx.export.target import check_target, written_together
from padst_fx.export.tensorrt.record import ENDING, WEIGHTS_ENDING, beside


def check_engine_path(path: str | os.PathLike[str]) -> Path:
    """The path of an engine, checked as `check_target` does with those of what stands beside it."""
    target = check_target(path)
    for ending in (ENDING, WEIGHTS_ENDING):
        check_target(beside(target, ending))
    return target


def write(contents: dict[Path, bytes]) -> tuple[Path, ...]:
    """Write files and return their paths; the first is moved to its place last.

    All are written beside their paths before any is moved, so that an error leaves what was there
    before.
    """
    with written_together(tuple(contents)) as places:
        for path, content in contents.items():
            places[path].write_bytes(content)
    return tuple(contents)
