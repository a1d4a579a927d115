"""Writing a model's files whole or not at all."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import onnx_ir as ir

# A protocol buffer holds at most 2 GiB; what is beyond tensors fits the rest.
LARGEST_IN_ONE = 2**31 - 2**27


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


def write(model: ir.Model, target: Path) -> tuple[Path, ...]:
    """Write a model, with its tensors in `<target>.data` where one file cannot hold them.

    The files are written elsewhere in the same folder and then moved to their places, so that an
    error leaves what was there before. Returns their paths, the model's first.
    """
    size = sum(value.const_value.nbytes for value in model.graph.initializers.values()
               if value.const_value is not None)  # fmt: skip
    data = f"{target.name}.data" if size > LARGEST_IN_ONE else None
    names = [target.name] if data is None else [data, target.name]
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as folder:
        ir.save(model, Path(folder) / target.name, external_data=data)
        for name in names:
            os.replace(Path(folder) / name, target.with_name(name))
    return tuple(target.with_name(name) for name in reversed(names))
