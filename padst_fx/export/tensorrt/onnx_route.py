"""Through ONNX to an engine of TensorRT or TensorRT-RTX."""

from __future__ import annotations

import os
from typing import Any

from torch import nn

from padst_fx.export.onnx.report import Layer
from padst_fx.export.target import check_target
from padst_fx.export.tensorrt import requirements
from padst_fx.export.tensorrt.files import check_engine_path, write
from padst_fx.export.tensorrt.options import Options
from padst_fx.export.tensorrt.precision import in_precision
from padst_fx.export.tensorrt.record import ENDING, WEIGHTS_ENDING, Record, beside
from padst_fx.export.tensorrt.report import EngineLayer, EngineReport


def export_through_onnx(
    model: nn.Module,
    example_inputs: Any,
    path: str | os.PathLike[str],
    dynamic_shapes: Any,
    options: Options,
) -> EngineReport:
    """See `export_tensorrt`."""
    library = requirements.library(options.library)
    requirements.check_packages(requirements.ONNX, "onnx")
    capabilities = requirements.capabilities(library, options.compute_capabilities)
    if not library.is_rtx:
        requirements.check_gpu(f"building with {library.name} {library.version}")
    if options.refit == "weights":
        requirements.check_gpu("building an engine with refit='weights'")
    from padst_fx.export.onnx.exporting import checked_opset
    from padst_fx.export.tensorrt import building
    from padst_fx.export.tensorrt.source_model import source_model

    target, opset = check_engine_path(path), checked_opset(options.opset)
    cache = None if options.timing_cache is None else check_target(options.timing_cache)
    source = source_model(
        *in_precision(model, example_inputs, options.precision), dynamic_shapes, opset,
        options.refit,
    )  # fmt: skip
    settings = building.Settings(
        flags=_flags(source.layers, options.refit),
        capabilities=capabilities,
        timing_cache=None if cache is None else cache.read_bytes() if cache.exists() else b"",
    )
    engine = building.build(library, source.serialized(), source.inputs, settings)
    record = Record(
        library=library.name,
        version=library.version,
        through="onnx",
        precision=options.precision,
        opset=opset,
        inputs=source.inputs,
        outputs=engine.outputs,
        capabilities=capabilities,
        refit=options.refit,
        graph=source.fingerprint(),
        weights=source.weight_shapes(),
    )
    contents = {target: engine.data, beside(target, ENDING): record.text().encode()}
    if options.refit == "inputs":
        contents[beside(target, WEIGHTS_ENDING)] = source.stored_weights()
    files = tuple(contents)
    if cache is not None and engine.timing_cache is not None:
        contents[cache] = engine.timing_cache
    write(contents)
    layers = tuple(
        EngineLayer(layer.name, layer.out_features, layer.in_features, layer.form, layer.reason,
                    engine.multiply_adds.get(layer.name))
        for layer in source.layers
    )  # fmt: skip
    return EngineReport(files, record, layers)


def _flags(layers: tuple[Layer, ...], refit: str | None) -> tuple[str, ...]:
    """Zeros are looked for in constants, of which `refit="inputs"` leaves none."""
    found = []
    if refit != "inputs" and any(layer.form == "2:4" for layer in layers):
        found.append("SPARSE_WEIGHTS")
    if refit == "weights":
        found.append("REFIT")
    return tuple(found)
