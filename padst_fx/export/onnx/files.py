"""Writing a model's files whole or not at all."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from padst_fx.export.target import written_together

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
    paths = (target,) if data is None else (target, target.with_name(data))
    with written_together(paths) as places:
        ir.save(model, places[target], external_data=data)
    return paths
