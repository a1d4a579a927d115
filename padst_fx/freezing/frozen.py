"""`freeze`: a trained model in its inference form. `explain`: what becomes of its permutations."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule

from padst_fx.freezing import sparse_order
from padst_fx.freezing.account import Report
from padst_fx.freezing.capture import capture, tensor_at
from padst_fx.freezing.dense import DenseChoice, replace_slower
from padst_fx.freezing.order import Order
from padst_fx.freezing.placement import Placement
from padst_fx.freezing.rewrite import Rewriter
from padst_fx.freezing.rules import RULES
from padst_fx.freezing.rules_sparse import kernel_of, window_of
from padst_fx.freezing.trace import Reading, Trace
from padst_fx.layers.linear import SparseLinear
from padst_fx.passes.projection_op import arguments


class FrozenModel(nn.Module):
    """A model as its exported graph, for inference. `program` is the graph module with tensors of
    its own, which need no gradients; `report` says what became of every permutation."""

    def __init__(self, program: GraphModule, report: Report) -> None:
        super().__init__()
        self.program = program
        self.report = report

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.program(*args, **kwargs)


@torch.no_grad()
def freeze(
    model: nn.Module,
    example_inputs: Any,
    dynamic_shapes: Any = None,
    *,
    skip_slower: bool = True,
) -> FrozenModel:
    """The inference form of a model: permutations folded away where the graph allows it.

    The model is exported with `example_inputs` (a tensor, a tuple of arguments or a dict of
    keyword arguments) and `dynamic_shapes`, as in `torch.export.export`; the result takes and
    returns what the export does. The model itself is not changed and shares no tensors with it.

    With `skip_slower` a sparse layer is made dense where dense is predicted to be faster
    (`padst_fx.cost.CostModel`) at the number of tokens that the example inputs have.

    Raises `TypeError` for example inputs of another kind and `ValueError` for a model that
    cannot be exported with them, or has permutations that are soft still.
    """
    placement, choices = _placed(model, example_inputs, dynamic_shapes, skip_slower)
    report = Report.of(placement, choices)
    program = Rewriter(placement).run()
    for node in program.graph.nodes:
        node.meta.pop("val", None)
    return FrozenModel(program, report).train(model.training)


@torch.no_grad()
def explain(
    model: nn.Module,
    example_inputs: Any,
    dynamic_shapes: Any = None,
    *,
    skip_slower: bool = True,
) -> Report:
    """What `freeze` with the same arguments would do with every permutation, and why."""
    placement, choices = _placed(model, example_inputs, dynamic_shapes, skip_slower)
    return Report.of(placement, choices)


def _is_soft(module: nn.Module) -> bool:
    return isinstance(module, SparseLinear) and module.soft_perm is not None


def _placed(
    model: nn.Module, example_inputs: Any, dynamic_shapes: Any, skip_slower: bool
) -> tuple[Placement, tuple[DenseChoice, ...]]:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    soft = [n for n, m in model.named_modules() if _is_soft(m)]
    if soft:
        raise ValueError(
            f"the permutation of {soft[0]} is soft still ({len(soft)} such layers): train on until "
            "DST has hardened it (SoftPermutation(harden_at=...) says when)"
        )
    module = capture(model, example_inputs, dynamic_shapes)
    choices = replace_slower(module, model) if skip_slower else ()
    trace = Trace.of(module, RULES)

    def absorbs(reading: Reading, order: Order) -> bool:
        values = tensor_at(module, str(arguments(reading.node)["values"].target))
        kernel, window = kernel_of(reading.node), window_of(reading.node)
        return sparse_order.can_absorb(kernel, values, window, order)

    return Placement.best(trace, absorbs), choices
