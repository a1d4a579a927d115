"""Scatter fusion: a scatter of `input_grad(..., perm)` becomes `input_grad(..., index[perm])`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch.fx import Graph, Node

from padst_fx.passes.feature_index import (
    Composer,
    aten,
    known_permutations,
    last_axis_index,
    permuted,
)
from padst_fx.passes.projection_op import arguments, value


@dataclass(frozen=True)
class FuseScatter:
    """Fuses the backward of a gather into the input gradients that it scatters.

    An input gradient writes each feature once, a scatter adds up: the same only for a
    permutation. So the index has to be one by contract: the `perm` of one of our ops in the same
    graph. What is scattered is an input gradient, or a sum of several (siblings), used
    nowhere else.
    """

    name: ClassVar[str] = "fuse_scatter"

    def apply(self, graph: Graph) -> int:
        matches, composer = 0, Composer(graph)
        permutations = known_permutations(graph)
        for node in graph.find_nodes(op="call_function", target=aten.index_put.default):
            zeros, indices, gradient, *accumulate = node.args
            tensor = value(zeros)
            if tensor is None or accumulate != [True] or not _is_zero(zeros):
                continue
            index = last_axis_index(indices, tensor.shape[-1], tensor.dim())
            leaves = _input_grads(gradient, node)
            if index not in permutations or not leaves:
                continue
            assert index is not None
            for leaf in sorted(leaves):
                perm = composer.compose(index, arguments(leaf)["perm"], before=leaf)
                leaf.replace_all_uses_with(permuted(leaf, perm))
                graph.erase_node(leaf)
            node.replace_all_uses_with(node.args[2])
            graph.erase_node(node)
            matches += 1
        return matches


def _is_zero(node: Any) -> bool:
    return (
        isinstance(node, Node)
        and node.target is aten.full.default
        and isinstance(node.args[1], int | float)
        and node.args[1] == 0
    )


def _input_grads(node: Any, user: Node) -> list[Node]:
    """The input gradients that `node` is or adds up, empty if it is anything else."""
    if not isinstance(node, Node) or set(node.users) != {user}:
        return []
    if node.target is aten.add.Tensor and not node.kwargs and node.args[0] is not node.args[1]:
        left, right = (_input_grads(operand, node) for operand in node.args)
        return left + right if left and right else []
    ours = isinstance(node.target, torch._ops.OpOverload) and node.target.namespace == "padst"
    return [node] if ours and str(node.target).endswith("_input_grad.default") else []
