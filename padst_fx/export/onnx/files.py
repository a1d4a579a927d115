"""Writing a model's files whole or not at all."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import onnx_ir as ir

# A protocol buffer holds at most 2 GiB; what is beyond tensors fits the rest.
LARGEST_IN_ONE = 2**31 - 2**27


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
