"""Passes over the functional graphs of a compile: one per file, in the order of `pipeline.py`.

To add one, write its file (see `graph_pass.py`) and put it into `PIPELINE`; the backend then has
an option of its name.
"""

from __future__ import annotations

from padst_fx.passes.graph_pass import GraphPass
from padst_fx.passes.pass_manager import GraphReport, PassManager
from padst_fx.passes.pipeline import PASS_NAMES, PIPELINE, build_joint_pipeline, build_pipeline

__all__ = [
    "PASS_NAMES",
    "PIPELINE",
    "GraphPass",
    "GraphReport",
    "PassManager",
    "build_joint_pipeline",
    "build_pipeline",
]
