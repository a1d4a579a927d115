"""Writing an engine and what belongs to it, whole or not at all."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def write(contents: dict[Path, bytes]) -> tuple[Path, ...]:
    """Write files of one folder and return their paths; the first is moved to its place last.

    All are written elsewhere in the folder before any is moved, so that an error leaves what was
    there before.
    """
    folder = next(iter(contents)).parent
    with tempfile.TemporaryDirectory(dir=folder, prefix=".engine.") as made:
        for path, content in contents.items():
            (Path(made) / path.name).write_bytes(content)
        for path in reversed(contents):
            os.replace(Path(made) / path.name, path)
    return tuple(contents)
