"""`export_tensorrt`: a model's inference form as a TensorRT engine."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from padst_fx.export.tensorrt.options import Options

if TYPE_CHECKING:
    from padst_fx.export.tensorrt.report import EngineReport


@torch.no_grad()
def export_tensorrt(
    model: nn.Module,
    example_inputs: Any,
    path: str | os.PathLike[str],
    dynamic_shapes: Any = None,
    *,
    through: str = "onnx",
    library: str | None = None,
    precision: str | None = None,
    refit: str | None = None,
    compute_capabilities: Sequence[str] | None = None,
    timing_cache: str | os.PathLike[str] | None = None,
    opset: int | None = None,
) -> EngineReport:
    """Build a TensorRT engine of a model's inference form and write it; returns a report.

    The model is frozen as by `export_onnx`. With `dynamic_shapes` the engine has one optimization
    profile: bounds are those of the `torch.export.Dim`s, the usual sizes those of
    `example_inputs`. Beside the engine stands `<path>.json`, which says how to feed it.

    `through="onnx"` works with TensorRT or TensorRT-RTX, whichever is installed (`library` picks
    one); sparse layers are products of gathered row blocks where that halves the multiply-adds, or
    dense, or 2:4 (the builder then gets `SPARSE_WEIGHTS`). TensorRT-RTX needs no GPU and builds
    for `compute_capabilities` such as `["8.9"]`. `through="torch"` needs Torch-TensorRT and a GPU;
    sparse layers are this package's own kernels, as plugins.

    `precision` is `"fp32"`, `"fp16"` or `"bf16"`, to which a copy of the model and floating inputs
    are cast; None keeps the model's. `timing_cache` is a file that is read if it exists and
    written. `refit="inputs"` makes weights and masks inputs of the engine, kept in
    `<path>.weights.safetensors`; `refit="weights"` sets TensorRT's own flag. `refit_tensorrt`
    renews either.

    Raises, before anything is built: `ModuleNotFoundError` that names missing packages,
    `RuntimeError` where a GPU is needed and there is none, `TypeError` and `ValueError` as
    `export_onnx` does and for options that do not fit, `OSError` where the path cannot be
    written. `RuntimeError` with TensorRT's words if it cannot build. After an error no file has
    been written or changed.
    """
    options = Options(
        through, library, precision, refit, compute_capabilities, timing_cache, opset
    )
    options.check(model)
    if through == "torch":
        from padst_fx.export.tensorrt.torch_route import export_through_torch

        return export_through_torch(model, example_inputs, path, dynamic_shapes, options)
    from padst_fx.export.tensorrt.onnx_route import export_through_onnx

    return export_through_onnx(model, example_inputs, path, dynamic_shapes, options)
