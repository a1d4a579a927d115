"""The file that a package is written to: all of it, or nothing."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SUFFIX = ".pt2"


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A file of that name in a folder beside `path`; moved to `path` when the block ends.

    Where the block raises, what was at `path` stays and the folder goes. Raises `ValueError` for
    a name that loaders would not take and `OSError` where nothing can be written, before the
    block is entered.
    """
    if path.suffix != SUFFIX:
        raise ValueError(f"path must end in {SUFFIX}, got {str(path)!r}")
    if path.is_dir():
        raise IsADirectoryError(f"cannot write {path}: it is a directory")
    try:
        folder = tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise type(error)(f"cannot write {path}: {error}") from error
    with folder as name:
        file = Path(name) / path.name
        yield file
        os.replace(file, path)
