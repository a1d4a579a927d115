"""Sparse layers of a translated model in the form they are computed in."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes.common import InlinePass, RemoveUnusedFunctionsPass, RemoveUnusedNodesPass
from onnxscript.optimizer import fold_constants

from padst_fx.export.onnx.forms import Choice, Form, choose
from padst_fx.export.onnx.functions import DOMAIN, FUNCTIONS, PADST
from padst_fx.export.onnx.masked import Gaps, is_masked
from padst_fx.export.onnx.report import Layer
from padst_fx.export.onnx.row_blocks import RowBlocks
from padst_fx.export.onnx.sources import WEIGHTS, SparseNode, array_of, sparse_nodes

INT64 = ir.DataType.INT64
UNLIMITED = 2**62


class Writer:
    """Makes nodes and initializers, and puts them into a graph."""

    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph
        self.tape = ir.tape.Tape(graph)

    def op(self, name: str, *inputs: ir.Value, domain: str = "", **attributes: object) -> ir.Value:
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
        name = "shape_" + "_".join(map(str, sizes)).replace("-1", "any")
        known = self.graph.initializers.get(name)
        return self.constant(name, np.array(sizes, np.int64)) if known is None else known

    def indices(self, name: str, array: NDArray) -> ir.Value:
        """Indices as int64, stored in the fewest bytes."""
        small = array.astype(np.min_scalar_type(array.max()))
        return self.op("Cast", self.constant(name, small), to=INT64)

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


def matrix(writer: Writer, layer: SparseNode) -> ir.Value:
    """The layer's dense `[in, out]` matrix behind its permutation."""
    return writer.op(
        WEIGHTS[layer.kind], layer.values, layer.index, domain=DOMAIN, **layer.sizes
    )


def dense(writer: Writer, layer: SparseNode) -> ir.Value:
    """One product with the effective weight, into which the permutation is folded."""
    weight = matrix(writer, layer)
    if layer.perm is not None:
        place = writer.indices(f"{layer.name}.place", np.argsort(layer.perm))
        weight = writer.op("Gather", weight, place, axis=0)
    return writer.op("MatMul", layer.x, weight)


def two_four(writer: Writer, layer: SparseNode) -> ir.Value:
    """One product with a 2:4 matrix, which a permutation folded into it would not be."""
    x = layer.x
    if layer.perm is not None:
        order = writer.indices(f"{layer.name}.order", layer.perm)
        x = writer.op("Gather", x, order, axis=-1)
    return writer.op("MatMul", x, matrix(writer, layer))


def gather(writer: Writer, layer: SparseNode, blocks: RowBlocks) -> ir.Value:
    """Tokens last: rows of the activations are gathered for each block, blocks are multiplied."""
    features, outputs = layer.in_features, layer.out_features
    columns = writer.indices(f"{layer.name}.columns", blocks.columns.numpy())
    order = np.arange(features) if layer.perm is None else layer.perm
    # What a filled-up block reads is multiplied by zero.
    order = writer.indices(f"{layer.name}.order", np.append(order, 0))
    read = writer.op("Gather", order, columns, axis=0)
    flat = writer.op("Reshape", layer.x, writer.shape(-1, features))
    x = writer.op("Gather", writer.op("Transpose", flat, perm=[1, 0]), read, axis=0)
    y = writer.op("MatMul", block_weight(writer, layer, blocks, columns), x)
    y = writer.op("Transpose", writer.op("Reshape", y, writer.shape(outputs, -1)), perm=[1, 0])
    leading = writer.op("Shape", layer.x, start=0, end=-1)
    return writer.op("Reshape", y, writer.op("Concat", leading, writer.shape(outputs), axis=0))


def block_weight(
    writer: Writer, layer: SparseNode, blocks: RowBlocks, columns: ir.Value
) -> ir.Value:
    """`[R, tile, C]`: the rows of every block at the columns it reads, and zeros beyond them."""
    rows, features = layer.out_features // blocks.tile, layer.in_features
    by_block = writer.op(
        "Transpose",
        writer.op("Reshape", matrix(writer, layer), writer.shape(features, rows, blocks.tile)),
        perm=[1, 0, 2],
    )
    if blocks.is_ragged:
        by_block = writer.op("Pad", by_block, writer.shape(0, 0, 0, 0, 1, 0))
    places = writer.op("Unsqueeze", columns, writer.shape(2))
    weight = writer.op("GatherND", by_block, places, batch_dims=1)
    return writer.op("Transpose", weight, perm=[0, 2, 1])


def lower(
    model: ir.Model, tokens: dict[str, int], choose: Choice = choose
) -> tuple[Layer, ...]:
    """Give every sparse layer of a translated model the form chosen for it in standard operators.

    `tokens` says how many tokens a layer of this name was given. Works in place.
    """
    add_functions(model)
    writer = Writer(model.graph)
    layers = []
    for layer in list(sparse_nodes(model.graph)):
        form = choose(layer, tokens[layer.name])
        layers.append(described(layer, form))
        y = computed(writer, layer, form)
        if layer.bias is not None:
            y = writer.op("Add", y, layer.bias)
        writer.replace(layer.node, y)
    layers += store_masked(writer)
    InlinePass()(model)
    remove_unused(model)
    model.opset_imports.pop(DOMAIN, None)
    return tuple(layers)


def define(model: ir.Model) -> tuple[Layer, ...]:
    """Give the nodes of the `padst` domain the functions that they stand for, in place."""
    add_functions(model)
    writer = Writer(model.graph)
    layers = []
    for layer in list(sparse_nodes(model.graph)):
        kind = f"{DOMAIN}::{layer.kind}"
        layers.append(described(layer, Form(kind, "custom_ops was asked for")))
        if layer.perm is None:
            identity = np.arange(layer.in_features, dtype=np.int32)
            layer.node.replace_input_with(3, writer.constant(f"{layer.name}.order", identity))
        if layer.bias is None:
            zeros = np.zeros(layer.out_features, array_of(layer.values).dtype)
            layer.node.replace_input_with(4, writer.constant(f"{layer.name}.zeros", zeros))
    layers += store_masked(writer)
    remove_unused(model)
    return tuple(layers)


def computed(writer: Writer, layer: SparseNode, form: Form) -> ir.Value:
    """The layer's result without its bias."""
    if form.blocks is not None:
        return gather(writer, layer, form.blocks)
    return two_four(writer, layer) if form.name == "2:4" else dense(writer, layer)


def described(layer: SparseNode, form: Form) -> Layer:
    """The layer's row of the report."""
    stored = array_of(layer.values).nbytes + array_of(layer.index).nbytes
    if form.blocks is not None:
        columns = form.blocks.columns
        stored += columns.numel() * np.min_scalar_type(int(columns.max())).itemsize
    weight = layer.in_features * layer.out_features * array_of(layer.values).itemsize
    return Layer(
        layer.name, layer.node.op_type, layer.out_features, layer.in_features, form.name,
        form.reason, stored, weight,
    )  # fmt: skip


def store_masked(writer: Writer) -> list[Layer]:
    """Store dense weights that are mostly zeros as their other entries."""
    found = [value for value in writer.graph.initializers.values() if is_masked(value)]
    return [_store_masked(writer, value) for value in found]


def _store_masked(writer: Writer, value: ir.Value) -> Layer:
    array = array_of(value)
    gaps = Gaps.of(array)
    assert value.name is not None
    name = value.name.rpartition(".")[0] or value.name
    made = writer.op(
        "GapWeight",
        writer.constant(f"{name}.values", gaps.values),
        writer.constant(f"{name}.gaps", gaps.gaps),
        writer.shape(*gaps.shape),
        domain=DOMAIN,
    )
    made.shape, made.type = value.shape, value.type
    writer.replace_constant(value, made)
    outputs, inputs = gaps.shape[0], array.size // gaps.shape[0]
    return Layer(name, "masked dense", outputs, inputs, "dense",
                 "its weights lie anywhere", gaps.nbytes, array.nbytes)  # fmt: skip


def add_functions(model: ir.Model) -> None:
    """Give the model the functions of the `padst` domain, at its own version of ONNX."""
    version = model.opset_imports[""]
    for function in FUNCTIONS:
        made = ir.serde.deserialize_function(function.to_function_proto())
        made.opset_imports[""] = version
        model.functions[made.identifier()] = made
    model.opset_imports[DOMAIN] = PADST.version


def remove_unused(model: ir.Model) -> None:
    """Remove what nothing reads: functions, nodes and initializers."""
    RemoveUnusedFunctionsPass()(model)
    RemoveUnusedNodesPass()(model)


def expand(model: ir.Model) -> None:
    """Compute everything that depends on constants alone, whatever its size, in place."""
    fold_constants(model, input_size_limit=UNLIMITED, output_size_limit=UNLIMITED)
    remove_unused(model)
