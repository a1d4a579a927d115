"""`refit_tensorrt`: new weights and masks for an engine that is there already."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import nn

from padst_fx.export.tensorrt import requirements
from padst_fx.export.tensorrt.files import write
from padst_fx.export.tensorrt.precision import in_precision
from padst_fx.export.tensorrt.record import WEIGHTS_ENDING, Record, beside

ENGINE_ALONE = (
    "masks are constants of an engine with refit='weights': export it anew, or with refit='inputs'"
)


@torch.no_grad()
def refit_tensorrt(
    path: str | os.PathLike[str],
    model: nn.Module,
    example_inputs: Any,
    dynamic_shapes: Any = None,
) -> tuple[Path, ...]:
    """Give an engine of `export_tensorrt(..., refit=...)` the model's present weights and masks.

    The arguments are those of the export; the engine is not built anew. With `refit="inputs"` the
    file of its weights is replaced, which needs neither a GPU nor TensorRT; with
    `refit="weights"` the engine is read, refitted and replaced, which needs both. Returns the
    files that were written.

    Raises `FileNotFoundError` where no engine's record lies beside `path`, `ValueError` for an
    engine that cannot be refitted, or a model with other layers, shapes or structures than it was
    built for. After an error no file has been changed.
    """
    target = Path(path)
    record = Record.read(target)
    if record.refit is None or record.opset is None:
        raise ValueError(f"{target} was exported without refit=...: export it anew")
    requirements.check_packages(requirements.ONNX, "onnx")
    from padst_fx.export.tensorrt.source_model import source_model

    source = source_model(
        *in_precision(model, example_inputs, record.precision), dynamic_shapes, record.opset,
        record.refit,
    )  # fmt: skip
    _check_shapes(record, source.weight_shapes())
    if source.fingerprint() != record.graph:
        reason = f" ({ENGINE_ALONE})" if record.refit == "weights" else ""
        raise ValueError(f"the model's graph is not the one {target} was built for{reason}")
    if record.refit == "inputs":
        return write({beside(target, WEIGHTS_ENDING): source.stored_weights()})
    requirements.check_gpu("refitting an engine")
    return write({target: _refitted(target, record, source.serialized())})


def _check_shapes(record: Record, shapes: dict[str, list[int]]) -> None:
    for name in record.weights.keys() | shapes.keys():
        built, new = record.weights.get(name), shapes.get(name)
        if built != new:
            raise ValueError(f"{name} has shape {new} in the model and {built} in the engine")


def _refitted(target: Path, record: Record, model: bytes) -> bytes:
    """The engine with the weights of an ONNX model."""
    from padst_fx.export.tensorrt.building import Messages

    library = requirements.library(record.library)
    trt, messages = library.module, Messages(library)
    engine = trt.Runtime(messages.logger).deserialize_cuda_engine(target.read_bytes())
    if engine is None:
        messages.raise_for(f"read {target}", library)
    refitter = trt.Refitter(engine, messages.logger)
    read = trt.OnnxParserRefitter(refitter, messages.logger).refit_from_bytes(model)
    if not read or not refitter.refit_cuda_engine():
        messages.raise_for(f"refit {target}", library)
    return bytes(engine.serialize())
