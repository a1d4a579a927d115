"""Sparse layers that dense ones would beat at the example inputs' number of tokens."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import torch
from torch import nn
from torch.fx import GraphModule, Node

from padst_fx.compiled import uncompiled
from padst_fx.cost import CostModel
from padst_fx.freezing.capture import put_tensor, tensor_at
from padst_fx.freezing.trace import hint
from padst_fx.layers.linear import SparseLinear
from padst_fx.passes.projection_op import arguments, projection_ops
from padst_fx.permutation import permute_columns


@dataclass(frozen=True)
class DenseChoice:
    """A layer that is dense in the frozen model, with both predicted times in seconds."""

    name: str
    tokens: int
    dense: float
    sparse: float
    source: str

    def __str__(self) -> str:
        return (
            f"{self.name} is dense: {self.dense * 1e6:,.1f} us at {self.tokens} tokens, sparse "
            f"{self.sparse * 1e6:,.1f} us ({self.source})"
        )


@torch.no_grad()
def replace_slower(module: GraphModule, model: nn.Module) -> tuple[DenseChoice, ...]:
    """Put dense products where the cost model predicts that they are faster; says where."""
    layers = {
        name: layer
        for name, layer in uncompiled(model).named_modules()
        if isinstance(layer, SparseLinear)
    }
    choices = []
    for node in list(module.graph.nodes):
        if node.target not in projection_ops():
            continue
        name = layer_name(node)
        layer = layers.get(name)
        if layer is None or arguments(node)["activation"] != "none":
            continue
        tokens = prod(hint(size) for size in node.meta["val"].shape[:-1])
        costs = CostModel.of(layer.values.device)
        compared = costs.compare(layer.pattern, max(tokens, 1), layer.values.dtype)
        if compared.gain < 1:
            _put_dense(module, node, name, layer)
            choices.append(DenseChoice(name, tokens, compared.dense.seconds,
                                       compared.sparse.seconds, compared.source))  # fmt: skip
    module.graph.eliminate_dead_code()
    module.graph.lint()
    return tuple(choices)


def layer_name(node: Node) -> str:
    """The qualified name of the layer whose weights an op multiplies by."""
    values = arguments(node)["values"]
    return str(values.target).rpartition(".")[0] if values.op == "get_attr" else node.name


def _put_dense(module: GraphModule, node: Node, name: str, layer: SparseLinear) -> None:
    """`F.linear` with the effective weight, in which the permutation is folded already."""
    named = arguments(node)
    place = "offsets" if "offsets" in named else "index"
    values, index, perm = (
        tensor_at(module, str(named[key].target)) for key in ("values", place, "perm")
    )
    target = f"{name}.weight" if name else "weight"
    put_tensor(module, target, permute_columns(layer.pattern.dense(values, index), perm))
    graph = module.graph
    with graph.inserting_before(node):
        weight = graph.get_attr(target)
        weight.meta["val"] = tensor_at(module, target)
        bias = named["bias"] if named["bias"].meta["val"].numel() else None
        dense = graph.call_function(torch.ops.aten.linear.default, (named["x"], weight, bias))
    dense.meta = dict(node.meta)
    node.replace_all_uses_with(dense)
    graph.erase_node(node)
