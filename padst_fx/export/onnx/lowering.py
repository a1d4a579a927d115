"""A translated model in the form that its file has: sparse layers in a form each, small tensors."""

from __future__ import annotations

from math import prod

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import InlinePass, RemoveUnusedFunctionsPass, RemoveUnusedNodesPass
from onnxscript.optimizer import fold_constants

from padst_fx.export.onnx.forms import Choice, Form, choose
from padst_fx.export.onnx.functions import DOMAIN, FUNCTIONS, PADST
from padst_fx.export.onnx.masked import Gaps, Names, fingerprint, is_masked
from padst_fx.export.onnx.products import compute
from padst_fx.export.onnx.report import Layer
from padst_fx.export.onnx.sources import SparseNode, array_of, sparse_nodes
from padst_fx.export.onnx.writer import Writer

UNLIMITED = 2**62


def lower(
    model: ir.Model, names: Names, tokens: dict[str, int], choose: Choice = choose
) -> tuple[Layer, ...]:
    """Give every sparse layer of a translated model the form chosen for it in standard operators.

    `names` are those of masked weights, `tokens` says how many tokens a layer of this name was
    given. Works in place.
    """
    add_functions(model)
    writer = Writer(model.graph)
    sparse = list(sparse_nodes(model.graph))
    forms = {layer.node: choose(layer, tokens[layer.name]) for layer in sparse}
    layers = [described(layer, forms[layer.node]) for layer in sparse]
    compact = {layer.values for layer in sparse}
    for layer in sparse:
        writer.replace(layer.node, compute(writer, layer, forms))
    layers += store_masked(writer, names, compact)
    InlinePass()(model)
    remove_unused(model)
    model.opset_imports.pop(DOMAIN, None)
    return tuple(layers)


def define(model: ir.Model, names: Names) -> tuple[Layer, ...]:
    """Give the nodes of the `padst` domain the functions that they stand for, in place."""
    add_functions(model)
    writer = Writer(model.graph)
    layers = []
    sparse = list(sparse_nodes(model.graph))
    for layer in sparse:
        kind = f"{DOMAIN}::{layer.kind}"
        layers.append(described(layer, Form(kind, "custom_ops was asked for")))
        if layer.perm is None:
            identity = np.arange(layer.in_features, dtype=np.int32)
            layer.node.replace_input_with(3, writer.constant(f"{layer.name}.order", identity))
        if layer.bias is None:
            zeros = np.zeros(layer.out_features, array_of(layer.values).dtype)
            layer.node.replace_input_with(4, writer.constant(f"{layer.name}.zeros", zeros))
    layers += store_masked(writer, names, {layer.values for layer in sparse})
    remove_unused(model)
    return tuple(layers)


def described(layer: SparseNode, form: Form) -> Layer:
    """The layer's row of the report."""
    stored = array_of(layer.values).nbytes + array_of(layer.index).nbytes
    if form.blocks is not None:
        stored += form.blocks.nbytes
    weight = layer.in_features * layer.out_features * array_of(layer.values).itemsize
    return Layer(
        layer.name, layer.node.op_type, layer.out_features, layer.in_features, form.name,
        form.reason, stored, weight,
    )  # fmt: skip


def store_masked(writer: Writer, names: Names, compact: set[ir.Value]) -> list[Layer]:
    """Store dense weights that are mostly zeros as their other entries. Weights that are `compact`
    stay, although many of them are zero too just after an update has grown them."""
    values = writer.graph.initializers.values()
    found = [value for value in values if value not in compact and is_masked(value)]
    return [_store_masked(writer, value, names) for value in found]


def _store_masked(writer: Writer, value: ir.Value, names: Names) -> Layer:
    array = array_of(value)
    gaps = Gaps.of(array)
    assert value.name is not None
    name, (outputs, *inputs) = names.get(fingerprint(array), (value.name, array.shape))
    made = writer.op(
        "GapWeight",
        writer.constant(f"{name}.values", gaps.values),
        writer.constant(f"{name}.gaps", gaps.gaps),
        writer.shape(*gaps.shape),
        domain=DOMAIN,
    )
    made.shape, made.type = value.shape, value.type
    writer.replace_constant(value, made)
    return Layer(name, "masked dense", outputs, prod(inputs), "dense",
                 "its weights lie anywhere", gaps.nbytes, array.nbytes)  # fmt: skip


def add_functions(model: ir.Model) -> None:
    """Give the model the functions of the `padst` domain, at its own version of ONNX."""
    version = model.opset_imports[""]
    dtypes = {layer.values.dtype for layer in sparse_nodes(model.graph)}
    dtypes |= {value.dtype for value in model.graph.initializers.values() if is_masked(value)}
    for function in FUNCTIONS:
        made = ir.serde.deserialize_function(function.to_function_proto())
        made.opset_imports[""] = version
        if len(dtypes) == 1:
            _fix_dtype(made, *dtypes)
        model.functions[made.identifier()] = made
    model.opset_imports[DOMAIN] = PADST.version


def _fix_dtype(function: ir.Function, dtype: ir.DataType | None) -> None:
    """`Cast` for `CastLike`: onnxruntime has no kernel for that, so what depends on it is not
    computed when the file is loaded, but at every call."""
    for node in function:
        if node.op_type == "CastLike":
            attributes = ir.convenience.convert_attributes({"to": dtype})
            cast = ir.Node("", "Cast", node.inputs[:1], attributes)
            ir.convenience.replace_nodes_and_values(
                function, node, [node], [cast], node.outputs, cast.outputs
            )


def remove_unused(model: ir.Model) -> None:
    """Remove what nothing reads: functions, nodes and initializers."""
    RemoveUnusedFunctionsPass()(model)
    RemoveUnusedNodesPass()(model)


def expand(model: ir.Model) -> None:
    """Compute everything that depends on constants alone, whatever its size, in place."""
    fold_constants(model, input_size_limit=UNLIMITED, output_size_limit=UNLIMITED)
    remove_unused(model)
