"""`export_onnx`: a model's inference form as an ONNX file."""

from __future__ import annotations

import os
import warnings
from importlib.util import find_spec
from math import prod
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from padst_fx.export.source import frozen_form
from padst_fx.export.target import check_target
from padst_fx.freezing import FrozenModel
from padst_fx.freezing.trace import hint
from padst_fx.passes.projection_op import projection_ops
from padst_fx.projections.graph import arguments

if TYPE_CHECKING:
    from padst_fx.export.onnx.masked import Names
    from padst_fx.export.onnx.report import Report

PACKAGES = ("onnx", "onnxscript")
OPSETS = range(18, 24)
DEFAULT_OPSET = 20
STORAGE = ("compact", "expanded")


@torch.no_grad()
def export_onnx(
    model: nn.Module,
    example_inputs: Any,
    path: str | os.PathLike[str],
    dynamic_shapes: Any = None,
    *,
    custom_ops: bool = False,
    opset: int | None = None,
    weights: str = "compact",
) -> Report:
    """Write a model's inference form to an ONNX file; returns a report on its sparse layers.

    The model is frozen with `example_inputs` and `dynamic_shapes` (`padst_fx.freeze`) unless it is
    frozen already; then they must fit those it was frozen with. The file computes what the frozen
    model does, on inputs of other sizes too where `dynamic_shapes` says so. The forms of sparse
    layers are chosen for the number of tokens in the example inputs.

    By default the file has standard operators only. With `custom_ops` every sparse layer is one
    node of the domain `padst` (`GatherGemm`, `ScatterGemm`, `Shift`; `Unstructured` ones stay
    dense products), which the file also defines in standard operators, so that a runtime without
    such ops runs it too.

    `weights="compact"` stores non-zero weights and computes dense ones, where a layer needs them,
    from constants: runtimes that fold constants do so while they load. `weights="expanded"` stores
    them as they are multiplied by, for runtimes that look for zeros in the file.

    Raises `ModuleNotFoundError` without the packages of `padst_fx[onnx]`, `TypeError` and
    `ValueError` as `freeze` does, `ValueError` for a model in training mode or that collects
    growth scores, an unknown opset or value of `weights` (with `custom_ops`: another than
    "compact"), or a model that ONNX has no operators for, and `OSError` where the file cannot be
    written. After an error no file has been written or changed.
    """
    _check_packages()
    from padst_fx.export.onnx.files import write
    from padst_fx.export.onnx.lowering import define, expand, lower
    from padst_fx.export.onnx.report import Report

    target = check_target(path)
    opset = checked_opset(opset)
    if weights not in STORAGE:
        raise ValueError(f"weights must be one of {', '.join(STORAGE)}; got {weights!r}")
    if custom_ops and weights != "compact":
        raise ValueError(f"custom_ops stores compact weights, got weights={weights!r}")
    frozen_model = frozen_form(model, example_inputs, dynamic_shapes)
    program = translated(frozen_model, example_inputs, dynamic_shapes, opset)
    names = layer_names(frozen_model)
    layers = (
        define(program.model, names)
        if custom_ops
        else lower(program.model, names, example_tokens(program))
    )
    if weights == "expanded":
        expand(program.model)
    return Report(write(program.model, target), opset, layers)


def _check_packages() -> None:
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise ModuleNotFoundError(
            f"export_onnx needs {' and '.join(missing)}: pip install 'padst_fx[onnx]'"
        )


def checked_opset(opset: int | None) -> int:
    """The opset, the default one for None; `ValueError` for one that is not supported."""
    if opset is None:
        return DEFAULT_OPSET
    if isinstance(opset, bool) or opset not in OPSETS:
        raise ValueError(f"opset must be one of {OPSETS[0]} to {OPSETS[-1]}, got {opset!r}")
    return opset


def translated(
    frozen_model: FrozenModel,
    example_inputs: Any,
    dynamic_shapes: Any,
    opset: int,
    optimize: bool = True,
) -> torch.onnx.ONNXProgram:
    """The ONNX model with every sparse layer as one node without a body; optimized by torch's
    exporter, or as it was translated."""
    from padst_fx.export.onnx.masks import without_idle_masks
    from padst_fx.export.onnx.translation import translation_table

    args, kwargs = arguments(example_inputs)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                without_idle_masks(frozen_model.program),
                args,
                kwargs=kwargs,
                dynamic_shapes=dynamic_shapes,
                opset_version=opset,
                custom_translation_table=translation_table(),
                optimize=optimize,
                verbose=False,
            )
    except torch.onnx.errors.OnnxExporterError as error:
        raise ValueError(f"ONNX has no form for this model: {_cause(error)}") from error
    assert program is not None
    return program


def layer_names(frozen_model: FrozenModel) -> Names:
    """The layers and shapes of matrices, by what tells these from others."""
    from padst_fx.export.onnx.masked import fingerprint

    tensors = frozen_model.program.state_dict().items()
    return {
        fingerprint(tensor.cpu().float().numpy()): (name.rpartition(".")[0], tuple(tensor.shape))
        for name, tensor in tensors
        if tensor.dim() > 1 and tensor.is_floating_point() and tensor.numel()
    }


def example_tokens(program: torch.onnx.ONNXProgram) -> dict[str, int]:
    """How many tokens each sparse layer was given with the example inputs, by its name."""
    exported = program.exported_program
    assert exported is not None
    signature = exported.graph_signature
    names = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    tokens: dict[str, int] = {}
    for node in exported.graph.nodes:
        if node.target in projection_ops():
            name = names[node.args[1].name].rpartition(".")[0]
            given = prod(hint(size) for size in node.meta["val"].shape[:-1])
            tokens[name] = max(given, tokens.get(name, 1))
    return tokens


def _cause(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
