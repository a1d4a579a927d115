"""The sizes that an engine's inputs may have: one optimization profile from the dynamic shapes."""

from __future__ import annotations

from typing import Any

import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind

from padst_fx.export.tensorrt.record import Input

LARGEST = 2**31 - 1


def profile(program: ExportedProgram, names: list[str]) -> tuple[Input, ...]:
    """The program's inputs under other names: bounds of `dynamic_shapes`, and the examples.

    Raises `ValueError` for a dynamic dimension without an upper bound.
    """
    users = {
        spec.arg.name
        for spec in program.graph_signature.input_specs
        if spec.kind == InputKind.USER_INPUT and hasattr(spec.arg, "name")
    }
    nodes = [node for node in program.graph.nodes if node.op == "placeholder"]
    read = [node for node in nodes if node.name in users]
    return tuple(_input(*pair) for pair in zip(read, names, strict=True))


def _input(node: torch.fx.Node, name: str) -> Input:
    dimensions = [bounds(size, name, axis) for axis, size in enumerate(node.meta["val"].shape)]
    least, usual, largest = zip(*dimensions, strict=True) if dimensions else ((), (), ())
    dtype = str(node.meta["val"].dtype).removeprefix("torch.")
    return Input(name, dtype, tuple(least), tuple(usual), tuple(largest))


def bounds(size: Any, name: str, axis: int) -> tuple[int, int, int]:
    """The least, usual and largest value of a size.

    Raises `ValueError`, naming the tensor and its axis, where there is no largest.
    """
    if isinstance(size, int):
        return size, size, size
    ranges = size.node.shape_env.bound_sympy(size.node.expr)
    if not ranges.upper.is_Integer or ranges.upper > LARGEST:
        raise ValueError(
            f"dimension {axis} of {name} has no upper bound, which a profile needs: give it as "
            "torch.export.Dim(name, min=..., max=...) in dynamic_shapes"
        )
    return int(ranges.lower), int(size.node.hint), int(ranges.upper)
