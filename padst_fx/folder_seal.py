"""The seal of a folder that several ranks have written: every file's checksum, put there last.

A folder without a seal is not complete, and what its seal does not fit is damaged. Ranks share the
work; each reads the files of every so many.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch.distributed as dist

from padst_fx.atomic_file import write_whole
from padst_fx.checkpoint_file import CheckpointError

NAME = "padst_fx.json"
VERSION = 2


def is_sealed(folder: Path) -> bool:
    """Whether there is a seal."""
    return (folder / NAME).is_file()


def seal(folder: Path) -> None:
    """Write the seal; every rank must call it, once all have written their files."""
    names = sorted(path.name for path in folder.iterdir() if path.name != NAME)
    sums = _united({name: _checksum(folder / name) for name in _share(names)})
    if _rank() == 0:
        content = {"version": VERSION, "sha256": sums}
        write_whole(folder / NAME, json.dumps(content, sort_keys=True, indent=1).encode())
    if dist.is_initialized():
        dist.barrier()


def check_seal(folder: Path) -> None:
    """Raise `CheckpointError` on every rank unless the folder's files are those that were sealed.

    Every rank must call it. Nothing but the seal is parsed.
    """
    if not is_sealed(folder):
        raise CheckpointError(f"no complete checkpoint at {folder}: it has no {NAME}")
    sums = _read(folder / NAME)
    faults = {
        name: fault
        for name in _share(sorted(sums))
        if (fault := _fault(folder / name, sums[name]))
    }
    if faults := _united(faults):
        name = min(faults)
        raise CheckpointError(f"{folder} is damaged: {name} {faults[name]}")


def _read(path: Path) -> dict[str, str]:
    try:
        content = json.loads(path.read_text())
        version, sums = content["version"], content["sha256"]
        good = all(isinstance(part, str) for item in sums.items() for part in item)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error
    if version != VERSION:
        raise CheckpointError(f"{path} has format version {version}; this package reads {VERSION}")
    if not good or any(Path(name).name != name for name in sums):
        raise CheckpointError(f"{path} is damaged: it does not list files and checksums")
    return sums


def _fault(path: Path, checksum: str) -> str:
    if not path.is_file():
        return "is missing"
    return "" if _checksum(path) == checksum else "does not match its checksum"


def _checksum(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def _share(names: list[str]) -> list[str]:
    """This rank's part of the work."""
    return names[_rank() :: dist.get_world_size()] if dist.is_initialized() else names


def _united(found: dict[str, str]) -> dict[str, str]:
    """What all ranks have found."""
    if not dist.is_initialized():
        return found
    parts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(parts, found)
    return {name: value for part in parts for name, value in part.items()}
