"""The ops that passes fuse into, as graph nodes: reading their arguments and rewriting them."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor
from torch._guards import detect_fake_mode
from torch._ops import OpOverload
from torch.fx import Graph, Node, map_arg

NAMES = ("shift", "gather_gemm", "scatter_gemm")


@functools.cache
def projection_ops() -> frozenset[OpOverload]:
    """The forward ops of sparse projections: each takes a bias and an activation."""
    import padst_fx.ops  # noqa: F401  (registers the ops)

    return frozenset(getattr(torch.ops.padst, name).default for name in NAMES)


def value(node: Any) -> Tensor | None:
    """The fake tensor that `node` computes, or None."""
    found = node.meta.get("val") if isinstance(node, Node) else None
    return found if isinstance(found, Tensor) else None


def is_plain_projection(node: Any) -> bool:
    """Whether `node` is a projection op without an activation, and its shape is known."""
    return (
        isinstance(node, Node)
        and node.target in projection_ops()
        and value(node) is not None
        and arguments(node)["activation"] == "none"
    )


def lacks_bias(node: Node) -> bool:
    """Whether a projection op's bias argument is the absent one, of length 0."""
    bias = value(arguments(node)["bias"])
    return bias is not None and tuple(bias.shape) == (0,)


def arguments(node: Node) -> dict[str, Any]:
    """The arguments of an op's node by name, in the order of its schema."""
    assert isinstance(node.target, OpOverload)
    names = [argument.name for argument in node.target._schema.arguments]
    given = dict(zip(names, node.args, strict=False)) | node.kwargs
    return {name: given[name] for name in names if name in given}


def call(graph: Graph, target: OpOverload, args: tuple[Any, ...], like: Node) -> Node:
    """A call at the insertion point, with its fake value and the metadata of `like`."""
    new = graph.call_function(target, args)
    stale = ("val", "tensor_meta", "eager_input_vals")
    new.meta = {key: entry for key, entry in like.meta.items() if key not in stale}
    fake_args = map_arg(args, lambda node: node.meta["val"])
    fake_mode = detect_fake_mode(fake_args)
    if fake_mode is None:
        raise ValueError(f"the inputs of {new.name} carry no fake tensors in meta['val']")
    with fake_mode, torch.no_grad(), torch._C._DisableAutocast():
        new.meta["val"] = target(*fake_args)
    return new


def rewrite(op: Node, before: Node, **changes: Any) -> Node:
    """A projection op with the arguments of `op` but for `changes`, put before `before`."""
    graph = op.graph
    assert isinstance(op.target, OpOverload)
    with graph.inserting_before(before):
        return call(graph, op.target, tuple((arguments(op) | changes).values()), like=op)
