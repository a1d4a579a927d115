"""Where exported files are to go, and how they get there."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
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
def written_together(paths: Sequence[Path]) -> Iterator[dict[Path, Path]]:
    """Where to write files first: a place for each, of the same name, in a folder beside it.

    When the block ends they are moved to their paths, the first one last. Where it raises, or one
    of them cannot be moved, what was there before stays.
    """
    with ExitStack() as stack:
        folders: dict[Path, Path] = {}
        for path in paths:
            if path.parent not in folders:
                name = stack.enter_context(
                    tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.")
                )
                folders[path.parent] = Path(name)
        places = {path: folders[path.parent] / path.name for path in paths}
        yield places
        _move(places)


def _move(places: dict[Path, Path]) -> None:
    """Move files to their paths, the first one last; all of them or none."""
    target, *companions = places
    with ExitStack() as undo:
        for path in companions:
            if path.exists():
                old = places[path].with_name(f"{path.name}.old")
                os.replace(path, old)
                undo.callback(os.replace, old, path)
            else:
                undo.callback(path.unlink, missing_ok=True)
            os.replace(places[path], path)
        os.replace(places[target], target)
        undo.pop_all()
