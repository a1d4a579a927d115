"""Writing an engine and what belongs to it, whole or not at all."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def check_target(path: str | os.PathLike[str]) -> Path:
    """The path as one that a file can be written to.

    Raises `OSError` where its folder does not exist or cannot be written to, or it is a folder.
    """
    target = Path(path)
    folder = target.parent
    if not folder.is_dir():
        raise FileNotFoundError(f"cannot write {target}: there is no folder {folder}")
    if target.is_dir():
        raise IsADirectoryError(f"cannot write {target}: it is a folder")
    if not os.access(folder, os.W_OK):
        raise PermissionError(f"cannot write {target}: {folder} cannot be written to")
    return target


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
