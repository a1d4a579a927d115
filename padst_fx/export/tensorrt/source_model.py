"""The ONNX model that an engine is parsed from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import Tensor

from padst_fx.export.onnx.exporting import example_tokens, layer_names, translated
from padst_fx.export.onnx.files import LARGEST_IN_ONE
from padst_fx.export.onnx.lowering import expand, lower
from padst_fx.export.onnx.optimizing import optimize_apart
from padst_fx.export.onnx.report import Layer
from padst_fx.export.source import frozen_form
from padst_fx.export.tensorrt import form as forms
from padst_fx.export.tensorrt.arithmetic import PART
from padst_fx.export.tensorrt.fingerprint import fingerprint
from padst_fx.export.tensorrt.profile import profile
from padst_fx.export.tensorrt.record import Input

SMALLEST_WEIGHT = 2
VALUES = "values"


@dataclass(frozen=True)
class SourceModel:
    """A model in standard operators, its weights as they are multiplied by.

    `inputs` are the model's own, `layers` its sparse layers. `weights` are further inputs, none by
    default. `fixed` says of an initializer whether refitting leaves it as it is.
    """

    model: ir.Model
    inputs: tuple[Input, ...]
    layers: tuple[Layer, ...]
    weights: dict[str, NDArray]
    fixed: Callable[[ir.Value], bool]

    def serialized(self) -> bytes:
        """The model as an ONNX file has it. Raises `ValueError` for more than that can hold."""
        constants = self.model.graph.initializers.values()
        size = sum(each.const_value.nbytes for each in constants if each.const_value is not None)
        if size > LARGEST_IN_ONE:
            raise ValueError(
                f"the constants take {size:,} bytes and an ONNX model in one piece holds 2 GiB: "
                "export with precision='fp16' or refit='inputs', or in parts"
            )
        data: bytes = ir.to_proto(self.model).SerializeToString()
        return data

    def stored_weights(self) -> bytes:
        """The weights that are inputs, as a safetensors file."""
        tensors = {name: _as_tensor(array) for name, array in self.weights.items()}
        return safetensors.torch.save(tensors)

    def weight_shapes(self) -> dict[str, list[int]]:
        """The shapes of the weights that are inputs."""
        return {name: list(array.shape) for name, array in self.weights.items()}

    def fingerprint(self) -> str:
        """A hash of operators, connections, shapes, and what refitting leaves as it is."""
        return fingerprint(self.model.graph, self.fixed)


def source_model(
    model: Any, example_inputs: Any, dynamic_shapes: Any, opset: int, refit: str | None
) -> SourceModel:
    """The model's frozen form for an engine that can be refitted with `refit`.

    Raises what `export_onnx` raises, and `ValueError` for a dimension without an upper bound.
    """
    choose = forms.choose_for_any_mask if refit else forms.choose
    frozen_model = frozen_form(model, example_inputs, dynamic_shapes)
    as_inputs = refit == "inputs"
    program = translated(
        frozen_model, example_inputs, dynamic_shapes, opset, optimize=not as_inputs
    )
    if as_inputs:
        optimize_apart(program.model)
    layers = lower(
        program.model, layer_names(frozen_model), example_tokens(program), choose
    )
    _name_products(program.model.graph, {layer.name for layer in layers})
    expand(program.model)
    graph = program.model.graph
    assert program.exported_program is not None
    inputs = profile(program.exported_program, [str(value.name) for value in graph.inputs])
    weights = _as_inputs(graph) if as_inputs else {}
    fixed = _is_no_float if refit == "weights" else _is_no_weight
    return SourceModel(program.model, inputs, layers, weights, fixed)


def _as_inputs(graph: ir.Graph) -> dict[str, NDArray]:
    """Make every weight an input instead of a constant, and return them."""
    weights = {}
    for name, value in list(graph.initializers.items()):
        if not _is_no_weight(value):
            assert value.const_value is not None
            weights[name] = value.const_value.numpy()
            del graph.initializers[name]
            value.const_value = None
            graph.inputs.append(value)
    return weights


def _name_products(graph: ir.Graph, layers: set[str]) -> None:
    """Name products after the layers whose weights they read: a parser keeps the names of nodes.

    The products of a layer are numbered behind its name.
    """
    numbers: Counter[str] = Counter()
    constants = _constants(graph)
    for node in graph:
        if node.op_type in ("MatMul", "Gemm"):
            names = {name for value in node.inputs for name in constants.get(value, ())}
            # Layers may share an index; freeze may have given values another ending.
            parts = [name.rpartition(".") for name in names]
            owners = {owner for owner, _, last in parts if last.startswith(VALUES)}
            for owner in owners & layers:
                numbers[owner] += 1
                node.name = f"{owner}{PART}{numbers[owner]}"


def _constants(graph: ir.Graph) -> dict[ir.Value | None, frozenset[str]]:
    """The initializers that values are computed from, of all values that no input reaches."""
    found: dict[ir.Value | None, frozenset[str]] = {
        value: frozenset([name]) for name, value in graph.initializers.items()
    }
    found[None] = frozenset()  # an optional input left out
    for node in graph:
        if all(source in found for source in node.inputs):
            names = frozenset[str]().union(*(found[source] for source in node.inputs))
            found.update(dict.fromkeys(node.outputs, names))
    return found


def _as_tensor(array: NDArray) -> Tensor:
    """An array as a tensor; NumPy has bfloat16 as a type of another package."""
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view("int16").copy()).view(torch.bfloat16)
    return torch.from_numpy(array.copy())


def _is_no_float(value: ir.Value) -> bool:
    """Whether an initializer is no floating tensor of several entries."""
    tensor = value.const_value
    assert tensor is not None
    return tensor.size < SMALLEST_WEIGHT or not tensor.dtype.is_floating_point()


def _is_no_weight(value: ir.Value) -> bool:
    """Whether training leaves it alone: no floating tensor, and no index of a gather."""
    tensor = value.const_value
    assert tensor is not None
    if tensor.size < SMALLEST_WEIGHT or not _is_no_float(value):
        return _is_no_float(value)
    return not all(
        node.op_type == "Gather" and place == 1 and not _is_shape(node.inputs[0])
        for node, place in value.uses()
    )


def _is_shape(value: ir.Value | None) -> bool:
    return value is not None and value.dtype == ir.DataType.INT64 and len(value.shape or ()) < 2
