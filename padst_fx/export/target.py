"""Where an exported file is to go."""

from __future__ import annotations

import os
from pathlib import Path


def check_target(path: str | os.PathLike[str]) -> Path:
    """The path as one that a file can be written to.

    Raises `TypeError` for what is not a path, and `OSError` where its folder does not exist or
    cannot be written to, or the path is a folder.
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
