"""Gather fusion: `op(x[..., index], ..., perm)` becomes `op(x, ..., index[perm])`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch.fx import Graph

from padst_fx.passes.feature_index import (
    Composer,
    aten,
    known_permutations,
    last_axis_index,
    permuted,
    reads_through,
)
from padst_fx.passes.projection_op import arguments, value


@dataclass(frozen=True)
class FuseGather:
    """Fuses a gather of all features into every op that reads its result.

    Kernels rely on `perm` being a permutation, so the index has to be one by contract: the `perm`
    of one of our ops in the same graph. Only our ops read the result, forward and backward: so
    it runs on the joint graph, before it is decided what the backward keeps. Siblings and their
    weight gradients share one composed index.
    """

    name: ClassVar[str] = "fuse_gather"

    def apply(self, graph: Graph) -> int:
        matches, composer = 0, Composer(graph)
        permutations = known_permutations(graph)
        for node in graph.find_nodes(op="call_function", target=aten.index.Tensor):
            source = value(node.args[0])
            if source is None or source.dim() == 0:
                continue
            index = last_axis_index(node.args[1], source.shape[-1], source.dim())
            alone = all(reads_through(user, node) for user in node.users)
            if index not in permutations or not alone:
                continue
            assert index is not None
            for user in sorted(node.users):
                perm = composer.compose(index, arguments(user)["perm"], before=user)
                new = permuted(user, perm)
                new.replace_input_with(node, node.args[0])
                user.replace_all_uses_with(new)
                graph.erase_node(user)
            graph.erase_node(node)
            matches += 1
        return matches
