"""Export to TensorRT: through ONNX, or through Torch-TensorRT with this package's kernels."""

from __future__ import annotations

from padst_fx.export.tensorrt.exporting import export_tensorrt
from padst_fx.export.tensorrt.refit import refit_tensorrt
from padst_fx.export.tensorrt.report import EngineLayer, EngineReport

__all__ = ["EngineLayer", "EngineReport", "export_tensorrt", "refit_tensorrt"]
