"""padst_fx: structured-sparse permuted projections, trained dynamically, compiled once.

Importing the package registers its ops in `torch.ops.padst`; everything else is loaded on
first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

import padst_fx.ops  # noqa: F401  (registers the ops)

if TYPE_CHECKING:
    from padst_fx.checkpoint import CheckpointError, load, save
    from padst_fx.dst import DST, LearnedPermutation, SoftPermutation
    from padst_fx.export.aoti import export_aoti
    from padst_fx.export.onnx import export_onnx
    from padst_fx.export.tensorrt import export_tensorrt, refit_tensorrt
    from padst_fx.freezing import explain, freeze
    from padst_fx.layers import SparseLinear
    from padst_fx.planning import Plan, plan
    from padst_fx.projections import Projection, find_projections
    from padst_fx.report import summary
    from padst_fx.sharded_checkpoint import load_sharded, save_sharded
    from padst_fx.sharding import replicated_parameters
    from padst_fx.structures import NM, Block, Diag, Structure, StructureError, Unstructured
    from padst_fx.surgery import densify, sparsify
    from padst_fx.training_checkpoint import load_training, save_training

_HOMES = {
    "CheckpointError": "checkpoint",
    "load": "checkpoint",
    "save": "checkpoint",
    "DST": "dst",
    "LearnedPermutation": "dst",
    "SoftPermutation": "dst",
    "export_aoti": "export.aoti",
    "explain": "freezing",
    "export_onnx": "export.onnx",
    "export_tensorrt": "export.tensorrt",
    "refit_tensorrt": "export.tensorrt",
    "freeze": "freezing",
    "SparseLinear": "layers",
    "Plan": "planning",
    "plan": "planning",
    "Projection": "projections",
    "find_projections": "projections",
    "densify": "surgery",
    "sparsify": "surgery",
    "NM": "structures",
    "Block": "structures",
    "Diag": "structures",
    "Structure": "structures",
    "StructureError": "structures",
    "Unstructured": "structures",
    "load_sharded": "sharded_checkpoint",
    "save_sharded": "sharded_checkpoint",
    "replicated_parameters": "sharding",
    "summary": "report",
    "load_training": "training_checkpoint",
    "save_training": "training_checkpoint",
}

__all__ = [
    "DST",
    "NM",
    "Block",
    "CheckpointError",
    "Diag",
    "LearnedPermutation",
    "Plan",
    "Projection",
    "SoftPermutation",
    "SparseLinear",
    "Structure",
    "StructureError",
    "Unstructured",
    "densify",
    "explain",
    "export_aoti",
    "export_onnx",
    "export_tensorrt",
    "find_projections",
    "freeze",
    "load",
    "load_sharded",
    "load_training",
    "plan",
    "refit_tensorrt",
    "replicated_parameters",
    "save",
    "save_sharded",
    "save_training",
    "sparsify",
    "summary",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'padst_fx' has no attribute {name!r}")
    value = getattr(import_module(f"padst_fx.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
