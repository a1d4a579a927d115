"""What torch's exporter does to a translated model, without merging equal constants."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes.common import (
    CommonSubexpressionEliminationPass,
    InlinePass,
    LiftConstantsToInitializersPass,
    LiftSubgraphInitializersToMainGraphPass,
    NameFixPass,
    OutputFixPass,
)
from onnxscript.optimizer import fold_constants
from onnxscript.rewriter import rewrite

ROUNDS = 2


def optimize_apart(model: ir.Model) -> None:
    """Fold and simplify a model in place; weights that are equal by chance stay two.

    `onnxscript.optimizer.optimize_ir` makes one of them, so that they could not differ later.
    """
    InlinePass()(model)
    for _ in range(ROUNDS):
        fold_constants(model, onnx_shape_inference=True)
        rewrite(model)
    for each in (
        LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        LiftSubgraphInitializersToMainGraphPass(),
        CommonSubexpressionEliminationPass(),
        OutputFixPass(),
        NameFixPass(),
    ):
        each(model)
