"""ONNX files of frozen models."""

from __future__ import annotations

from padst_fx.export.onnx.exporting import export_onnx
from padst_fx.export.onnx.report import Layer, Report

__all__ = ["Layer", "Report", "export_onnx"]
