"""Files that belong together appear together or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from padst_fx.export.target import written_together


def write(paths: list[Path]) -> None:
    with written_together(paths) as places:
        for path in paths:
            assert places[path].parent.parent == path.parent
            places[path].write_text(f"new {path.name}")


def contents(folder: Path) -> dict[str, str]:
    """Of all files below a folder, by their paths in it."""
    return {
        str(path.relative_to(folder)): path.read_text()
        for path in folder.rglob("*") if path.is_file()
    }  # fmt: skip


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    """A model's, one of a file beside it, and one in another folder; two of them exist."""
    (tmp_path / "other").mkdir()
    found = [tmp_path / "model", tmp_path / "model.json", tmp_path / "other" / "cache"]
    for path in (found[0], found[2]):
        path.write_text("old")
    return found


def test_all_are_written(paths: list[Path], tmp_path: Path) -> None:
    write(paths)
    assert contents(tmp_path) == {
        "model": "new model", "model.json": "new model.json", "other/cache": "new cache"
    }  # fmt: skip


@pytest.mark.parametrize("failing", ["model", "model.json", "cache"])
def test_none_is_written_where_one_cannot_be_moved(
    failing: str, paths: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace = os.replace

    def refuse(source: Path, target: Path) -> None:
        if target.name == failing and source.name == failing:
            raise PermissionError(f"not permitted: {target}")
        replace(source, target)

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(PermissionError, match="not permitted"):
        write(paths)
    assert contents(tmp_path) == {"model": "old", "other/cache": "old"}


def test_none_is_written_where_writing_fails(paths: list[Path], tmp_path: Path) -> None:
    with pytest.raises(OSError, match="no space"), written_together(paths) as places:
        places[paths[1]].write_text("half")
        raise OSError("no space left on device")
    assert contents(tmp_path) == {"model": "old", "other/cache": "old"}
