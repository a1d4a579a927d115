"""New nodes and initializers of an ONNX graph."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

INT64 = ir.DataType.INT64


class Writer:
    """Makes nodes and initializers, and puts them into a graph."""

    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph
        self.tape = ir.tape.Tape(graph)

    def op(self, name: str, *inputs: ir.Value, domain: str = "", **attributes: Any) -> ir.Value:
        """The result of a new node."""
        return self.tape.op(name, inputs, attributes, domain=domain)

    def constant(self, name: str, array: NDArray) -> ir.Value:
        """A new initializer of this name, or with a number behind it where there is one."""
        unique, number = name, 1
        while unique in self.graph.initializers:
            number += 1
            unique = f"{name}_{number}"
        return self.tape.initializer(ir.tensor(array, name=unique), unique)

    def shape(self, *sizes: int) -> ir.Value:
        """Sizes as an initializer; those of the same sizes are the same."""
        name = "padst.shape_" + "_".join(map(str, sizes)).replace("-1", "any")
        known = self.graph.initializers.get(name)
        return self.constant(name, np.array(sizes, np.int64)) if known is None else known

    def indices(self, name: str, array: NDArray) -> ir.Value:
        """Indices as int64, stored in the fewest bytes."""
        return self.op("Cast", self.constant(name, smallest(array)), to=INT64)

    def replace(self, node: ir.Node, result: ir.Value) -> None:
        """Put the new nodes in the place of one node, for whose output `result` stands."""
        ir.convenience.replace_nodes_and_values(
            self.graph, node, [node], self.tape.nodes, node.outputs, [result]
        )
        self.tape = ir.tape.Tape(self.graph)

    def replace_constant(self, constant: ir.Value, result: ir.Value) -> None:
        """Put the new nodes at the start, and `result` in the place of an initializer."""
        ir.convenience.replace_all_uses_with(constant, result)
        self.graph.insert_before(self.graph[0], self.tape.nodes)
        assert constant.name is not None
        del self.graph.initializers[constant.name]
        self.tape = ir.tape.Tape(self.graph)


def smallest(indices: NDArray) -> NDArray:
    """Indices in the smallest unsigned type that holds them."""
    return indices.astype(np.min_scalar_type(indices.max()))
