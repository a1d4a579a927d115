"""Writing an engine and what belongs to it, whole or not at all."""

from __future__ import annotations

from pathlib import Path

from padst_fx.export.target import written_together


def write(contents: dict[Path, bytes]) -> tuple[Path, ...]:
    """Write files of one folder and return their paths; the first is moved to its place last.

    All are written elsewhere in the folder before any is moved, so that an error leaves what was
    there before.
    """
    paths = tuple(contents)
    with written_together(paths) as folder:
        for path, content in contents.items():
            (folder / path.name).write_bytes(content)
    return paths
