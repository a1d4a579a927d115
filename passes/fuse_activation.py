"""Activation fusion: `gelu(op(x, ..., "none"))` becomes `op(x, ..., "gelu")`."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx import Graph, Node

from padst_fx.passes.expression import Expression
from padst_fx.passes.projection_op import is_plain_projection, rewrite

_VIEWS = frozenset({torch.ops.aten.view.default, torch.ops.aten.reshape.default})


@dataclass(frozen=True)
class FuseActivation:
    """Fuses relu, gelu (erf and tanh) and silu into the projection before them.

    The activation is the only user of the projection; views may lie between them. So in
    training, where the forward keeps what the backward reads, gelu and silu stay apart and relu is
    fused unless its input is what is kept.
    """

    name: ClassVar[str] = "fuse_activation"

    def apply(self, graph: Graph) -> int:
        matches = 0
        for node in list(graph.nodes):
            if not is_plain_projection(node):
                continue
            seen_as = _last_view(node)
            for activation, expression in _expressions(node.meta["val"].dtype):
                match = expression.match(seen_as)
                if match is not None:
                    match.root.replace_all_uses_with(seen_as)
                    for inner in sorted((match.root, *match.interior), reverse=True):
                        graph.erase_node(inner)
                    node.replace_all_uses_with(rewrite(node, before=node, activation=activation))
                    graph.erase_node(node)
                    matches += 1
                    break
        return matches


def _last_view(node: Node) -> Node:
    """`node` as its one user sees it, after any views."""
    while len(node.users) == 1 and (user := next(iter(node.users))).target in _VIEWS:
        node = user
    return node


def _gelu_tanh(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


def _gelu_tanh_written_out(x: Tensor) -> Tensor:
    """GPT-2's formula, as Hugging Face computes it."""
    inner = math.sqrt(2.0 / math.pi) * (x + 0.044715 * torch.pow(x, 3.0))
    return 0.5 * x * (1.0 + torch.tanh(inner))


def _silu_written_out(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


_ACTIVATIONS: tuple[tuple[str, Callable[[Tensor], Tensor]], ...] = (
    ("relu", F.relu),
    ("gelu", F.gelu),
    ("gelu_tanh", _gelu_tanh),
    ("gelu_tanh", _gelu_tanh_written_out),
    ("silu", F.silu),
    ("silu", _silu_written_out),
)


@functools.cache
def _expressions(dtype: torch.dtype) -> tuple[tuple[str, Expression], ...]:
    """Every activation as it looks in a graph of `dtype`; half precision has casts in it."""
    return tuple((name, Expression.trace(function, dtype)) for name, function in _ACTIVATIONS)
