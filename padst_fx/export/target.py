"""Where exported files are to go, and how they get there."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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


@contextmanager
def written_together(paths: Sequence[Path]) -> Iterator[Path]:
    """A folder beside files of one folder, to write them in under their names.

    When the block ends they are moved to their places, the first one last. Where it raises, what
    was there stays.
    """
    target = paths[0]
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as folder:
        yield Path(folder)
        for path in reversed(paths):
            os.replace(Path(folder) / path.name, path)
