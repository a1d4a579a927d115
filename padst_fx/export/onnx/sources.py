"""The sparse layers of a translated ONNX model, with their stored tensors."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from padst_fx.export.onnx.functions import DOMAIN

WEIGHTS = {
    "GatherGemm": "GatherWeight",
    "ScatterGemm": "ScatterWeight",
    "Shift": "ShiftWeight",
}


@dataclass(frozen=True)
class SparseNode:
    """One sparse layer of the graph: `node` is an op of the `padst` domain, whose inputs are the
    activations and the initializers of values, index, permutation and bias."""

    node: ir.Node

    @property
    def name(self) -> str:
        """The layer's qualified name: that of its values."""
        values = self.node.inputs[1]
        assert values is not None and values.name is not None
        return values.name.rpartition(".")[0]

    @property
    def kind(self) -> str:
        """`GatherGemm`, `ScatterGemm` or `Shift`."""
        return self.node.op_type

    @property
    def x(self) -> ir.Value:
        """The activations."""
        return _given(self.node, 0)

    @property
    def y(self) -> ir.Value:
        """The result."""
        return self.node.outputs[0]

    @property
    def values(self) -> ir.Value:
        return _given(self.node, 1)

    @property
    def index(self) -> ir.Value:
        return _given(self.node, 2)

    @property
    def bias(self) -> ir.Value | None:
        """The bias, or None where its tensor has length 0."""
        bias = _given(self.node, 4)
        return bias if array_of(bias).size else None

    @property
    def perm(self) -> NDArray[np.int32] | None:
        """The input permutation, or None where its tensor has length 0."""
        perm = array_of(_given(self.node, 3))
        return perm if perm.size else None

    @property
    def sizes(self) -> dict[str, int]:
        """The op's attributes."""
        return {name: attribute.as_int() for name, attribute in self.node.attributes.items()}

    @property
    def in_features(self) -> int:
        if self.kind == "ScatterGemm":
            return self._blocked
        return self.sizes["in_features"]

    @property
    def out_features(self) -> int:
        if self.kind == "GatherGemm":
            return self._blocked
        return self.sizes["out_features"]

    @property
    def _blocked(self) -> int:
        """Features of the side that is cut into blocks."""
        blocks, _, _, tile = array_of(self.values).shape
        return blocks * tile

    @property
    def stretch(self) -> int:
        """How many adjacent inputs every entry reads."""
        shape = array_of(self.values).shape
        return {"GatherGemm": shape[-2], "ScatterGemm": shape[-1], "Shift": 1}[self.kind]

    @property
    def is_two_four(self) -> bool:
        """Whether each row has two weights in every four adjacent inputs."""
        if self.kind != "GatherGemm" or self.sizes["window"] != 4:
            return False
        _, entries, group, tile = array_of(self.values).shape
        return (2 * entries, group, tile) == (self.in_features, 1, 1)


def sparse_nodes(graph: ir.Graph) -> Iterator[SparseNode]:
    """The sparse layers, in the order of the graph."""
    for node in list(graph):
        if node.domain == DOMAIN and node.op_type in WEIGHTS:
            yield SparseNode(node)


def array_of(value: ir.Value) -> NDArray:
    """The entries of an initializer."""
    assert value.const_value is not None, f"{value.name} is not an initializer"
    return value.const_value.numpy()


def _given(node: ir.Node, place: int) -> ir.Value:
    value = node.inputs[place]
    assert value is not None
    return value
