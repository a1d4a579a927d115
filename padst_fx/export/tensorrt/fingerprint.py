"""Whether two ONNX graphs differ in their weights alone."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import numpy as np
import onnx_ir as ir


def fingerprint(graph: ir.Graph, is_fixed: Callable[[ir.Value], bool]) -> str:
    """A hash of operators, connections, shapes, and of the entries of what is fixed."""
    digest = hashlib.sha256()

    def add(*parts: object) -> None:
        digest.update((" ".join(map(str, parts)) + "\n").encode())

    for value in (*graph.inputs, *graph.outputs):
        add(value.name, value.dtype, value.shape)
    for name, value in sorted(graph.initializers.items()):
        tensor = value.const_value
        assert tensor is not None
        add(name, tensor.dtype, tensor.shape)
        if is_fixed(value):
            digest.update(np.ascontiguousarray(tensor.numpy()).tobytes())
    for node in graph:
        add(node.domain, node.op_type, [value.name for value in node.inputs if value is not None])
        add([value.name for value in node.outputs], *sorted(map(str, node.attributes.values())))
    return digest.hexdigest()
