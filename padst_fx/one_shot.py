"""One-shot sparsification inside `torch.compile`: a dense model goes in, a sparse graph runs.

`torch.compile(model, backend="padst", options={"structure": "diag", "sparsity": 0.9})`. The linear
projections of each graph lose their weakest units by magnitude; for inference only. A weight is
read at the first call that passes it and again after an in-place change of it. The result is that
of `padst_fx.sparsify(model, ..., init="magnitude")`; the dense weights stay where they are.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._guards import detect_fake_mode
from torch.fx import Graph, GraphModule, Node

from padst_fx.structures import Pattern, Structure, StructureError

log = logging.getLogger(__name__)

Compiled = Callable[..., Any]

# A head's logits may still go through these on the way out.
_AFTER_A_HEAD = {
    *("view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "transpose", "permute"),
    *("contiguous", "clone", "getitem", "to", "type_as", "float", "double", "half", "bfloat16"),
    *("dropout", "softmax", "log_softmax"),
}
_READERS = {
    *("linear", "addmm", "matmul", "mm", "bmm", "baddbmm", "einsum", "bilinear"),
    *("scaled_dot_product_attention", "conv1d", "conv2d", "conv3d"),
}
_SEVERAL_PROJECTIONS = {
    "multi_head_attention_forward",
    "_native_multi_head_attention",
    "_transformer_encoder_layer_fwd",
}


def compile_one_shot(
    gm: GraphModule,
    example_inputs: list[Any],
    structure: Structure,
    sparsity: float | None,
    compile_graph: Callable[[GraphModule, list[Any]], Compiled],
) -> Compiled:
    """Compile a Dynamo graph with its linear projections replaced by sparse ones.

    What stays dense: heads (what they compute is an output of the graph), weights that are tied
    or not parameters, dimensions the structure does not divide, and `nn.MultiheadAttention`,
    which Dynamo keeps as one call; each is logged with the reason. `compile_graph` gets the
    rewritten graph.

    Raises RuntimeError where gradients could be asked for, ValueError if nothing is left to
    sparsify or the sparsity is out of range.
    """
    _refuse_training(example_inputs)
    gm = _copy(gm)
    chosen, dense = _choose(gm.graph, structure, sparsity)
    for name, reason in dense.items():
        log.info("one-shot: %s stays dense: %s", name, reason)
    if not chosen:
        raise ValueError(_nothing(dense))
    placeholders = gm.graph.find_nodes(op="placeholder")
    positions = {node: position for position, node in enumerate(placeholders)}
    sparse_inputs = [tensor for one in chosen for tensor in _rewrite(gm.graph, one, example_inputs)]
    gone = {one.weight for one in chosen}
    for node in gone:
        gm.graph.erase_node(node)
    gm.graph.lint()
    gm.recompile()
    kept = [position for node, position in positions.items() if node not in gone]
    inputs = [example_inputs[position] for position in kept] + sparse_inputs
    log.info("one-shot: %d projections made sparse (%s)", len(chosen), structure)
    weights = [(positions[one.weight], SparseWeight(one)) for one in chosen]
    return OneShot(compile_graph(gm, inputs), kept, weights)


@dataclass(frozen=True)
class Replacement:
    """A dense weight of the graph, what computes with it, and what takes its place.

    `transposed`: the weight is `[in, out]` and its users are `addmm`.
    """

    weight: Node
    users: tuple[Node, ...]
    pattern: Pattern
    transposed: bool


class SparseWeight:
    """The sparse form of one weight of the graph, made from whichever tensor a call passes."""

    def __init__(self, replacement: Replacement) -> None:
        self.pattern = replacement.pattern
        self.transposed = replacement.transposed
        self.made: dict[int, tuple[weakref.ref[Tensor], int, list[Tensor]]] = {}

    def __call__(self, weight: Tensor) -> list[Tensor]:
        """Values, index, and the absent permutation and bias."""
        # Dynamo runs one graph for all instances of a class, so the tensor may be another's.
        key, version = id(weight), 0 if weight.is_inference() else weight._version
        known = self.made.get(key)
        if known is not None and known[0]() is weight and known[1] == version:
            return known[2]
        tensors = self._sparsify(weight)
        reference = weakref.ref(weight, lambda _: self.made.pop(key, None))
        self.made[key] = (reference, version, tensors)
        return tensors

    def _sparsify(self, weight: Tensor) -> list[Tensor]:
        with torch.no_grad():
            dense = weight.t() if self.transposed else weight
            units = self.pattern.strongest_units(self.pattern.unit_norms_of_dense(dense))
            index = self.pattern.index_from_units(units).contiguous()
            values = self.pattern.values_from_dense(dense, index).contiguous()
            absent = torch.empty(0, dtype=torch.int32, device=weight.device)
            return [values, index, absent, weight.new_empty(0)]


class OneShot:
    """A compiled graph that takes sparse tensors in place of some of its dense arguments."""

    def __init__(
        self, compiled: Compiled, kept: list[int], weights: list[tuple[int, SparseWeight]]
    ) -> None:
        self.compiled = compiled
        self.kept = kept
        self.weights = weights

    def __call__(self, *args: Any) -> Any:
        dense = [args[position] for position in self.kept]
        sparse = [tensor for position, weight in self.weights for tensor in weight(args[position])]
        return self.compiled(*dense, *sparse)


def _refuse_training(example_inputs: Sequence[Any]) -> None:
    if torch.is_grad_enabled() and any(
        isinstance(tensor, Tensor) and tensor.requires_grad for tensor in example_inputs
    ):
        raise RuntimeError(
            "the options structure and sparsity sparsify for inference only: call the compiled "
            "model under torch.no_grad(), or, to train it, call padst_fx.sparsify(model, "
            "structure, sparsity) first and compile the result without these options"
        )


def _copy(gm: GraphModule) -> GraphModule:
    """A graph to rewrite: Dynamo still reads the inputs of its own after the backend returns.

    AOTAutograd takes a graph for Dynamo's by these attributes and marks.
    """
    graph = Graph()
    copies: dict[Node, Node] = {}
    graph.output(graph.graph_copy(gm.graph, copies))
    for node in gm.graph.find_nodes(op="placeholder"):
        copies[node]._dynamo_source = node._dynamo_source
    copy = GraphModule(gm, graph)
    copy.meta = dict(gm.meta)
    for name in ("_param_name_to_source", "_source_to_user_stacks"):
        if hasattr(gm, name):
            setattr(copy, name, getattr(gm, name))
    return copy


def _nothing(dense: dict[str, str]) -> str:
    if not dense:
        return (
            "nothing to sparsify: this graph has no linear projection (after a graph break each "
            "part is compiled alone; fullgraph=True shows breaks)"
        )
    listed = "; ".join(f"{name}: {reason}" for name, reason in list(dense.items())[:8])
    more = f"; and {len(dense) - 8} more" if len(dense) > 8 else ""
    return f"nothing to sparsify: every projection of this graph stays dense ({listed}{more})"


def _choose(
    graph: Graph, structure: Structure, sparsity: float | None
) -> tuple[list[Replacement], dict[str, str]]:
    """The weights to replace, and the reason for each projection that stays dense."""
    chosen: list[Replacement] = []
    dense = {
        _module_name(node): "it computes several projections in one call of the graph; "
        "padst_fx.sparsify can replace them"
        for node in graph.nodes
        if _function_name(node) in _SEVERAL_PROJECTIONS
    }
    for weight, users in _weights(graph).items():
        reason = _obstacle(weight, users)
        if reason is None:
            transposed = users[0].target is not F.linear
            rows, columns = weight.meta["example_value"].shape
            shape = (columns, rows) if transposed else (rows, columns)
            try:
                pattern = structure.bind(*shape, sparsity)
            except StructureError as error:
                reason = str(error)
            else:
                chosen.append(Replacement(weight, users, pattern, transposed))
        if reason is not None:
            dense[_module_name(users[0])] = reason
    return chosen, dense


def _weights(graph: Graph) -> dict[Node, tuple[Node, ...]]:
    """What the graph's linear projections use as weights, with the projections that do."""
    found: dict[Node, tuple[Node, ...]] = {}
    for node in graph.nodes:
        if node.target is F.linear or node.target is torch.addmm:
            weight = _linear_arguments(node)[1]
            if isinstance(weight, Node):
                found[weight] = (*found.get(weight, ()), node)
    return found


def _linear_arguments(node: Node) -> tuple[Any, Any, Any]:
    """Input, weight and bias of a call of `F.linear` or `torch.addmm`."""
    if node.target is F.linear:
        names = ("input", "weight", "bias")
        given = dict(zip(names, node.args, strict=False)) | node.kwargs
        return given["input"], given["weight"], given.get("bias")
    given = dict(zip(("input", "mat1", "mat2"), node.args, strict=False)) | node.kwargs
    return given["mat1"], given["mat2"], given["input"]


def _obstacle(weight: Node, users: tuple[Node, ...]) -> str | None:
    """Why a weight cannot be replaced, or None."""
    static = weight.meta.get("tensor_dict", {}).get("_dynamo_static_input_type")
    if weight.op != "placeholder" or not static:
        return "its weight is computed in the graph or passed in, not a parameter or buffer"
    if set(weight.users) != set(users) or len({_module_name(user) for user in users}) > 1:
        return "its weight is tied"
    tensor = weight.meta["example_value"]
    if tensor.dim() != 2 or not tensor.is_floating_point():
        return f"its weight is {tensor.dtype} of shape {tuple(tensor.shape)}"
    if len({user.target for user in users}) > 1 or any(_scales(user) for user in users):
        return "its addmm scales, or adds something that is no bias"
    if any(_is_head(user) for user in users):
        return "a head"
    return None


def _scales(node: Node) -> bool:
    """Whether an `addmm` is more than a projection with a bias."""
    if node.target is F.linear:
        return False
    bias = _linear_arguments(node)[2]
    one_row = isinstance(bias, Node) and bias.meta["example_value"].dim() == 1
    return not one_row or any(node.kwargs.get(name, 1) != 1 for name in ("alpha", "beta"))


def _is_head(node: Node) -> bool:
    """Whether a result leaves the graph as it is, and no further projection or product reads it."""
    pending, direct = [node], False
    while pending:
        for user in pending.pop().users:
            direct = direct or user.op == "output"
            if _function_name(user) in _AFTER_A_HEAD:
                pending.append(user)
    return direct and not any(_function_name(later) in _READERS for later in _descendants(node))


def _descendants(node: Node) -> Iterator[Node]:
    seen = {node}
    pending = [node]
    while pending:
        for user in pending.pop().users:
            if user not in seen:
                seen.add(user)
                pending.append(user)
                yield user


def _function_name(node: Node) -> str:
    return node.target if isinstance(node.target, str) else node.target.__name__


def _module_name(node: Node) -> str:
    """The path, from the compiled callable, of the module that a node comes from."""
    stack = list(node.meta.get("nn_module_stack", {}).values())
    return stack[-1][0].partition("].")[2] or node.name if stack else node.name


def _rewrite(graph: Graph, replacement: Replacement, example_inputs: list[Any]) -> list[Tensor]:
    """Replace the users of a weight; returns the example values of the inputs this adds."""
    weight, pattern = replacement.weight.meta["example_value"], replacement.pattern
    examples = _empty_tensors(pattern, weight, detect_fake_mode(example_inputs))
    added: list[Node] = []
    for example in examples:
        name = f"{replacement.weight.name}_sparse_{len(added)}"
        with graph.inserting_after(graph.find_nodes(op="placeholder")[-1]):
            added.append(_placeholder(graph, name, example))
    values, index, perm, absent = added
    for user in replacement.users:
        x, _, bias = _linear_arguments(user)
        traced = _trace_linear(pattern, weight.dtype, bias is not None)
        inputs = (x, values, index, perm, absent if bias is None else bias)
        parameters = traced.find_nodes(op="placeholder")
        with graph.inserting_before(user):
            result = graph.graph_copy(traced, dict(zip(parameters, inputs, strict=True)))
        assert isinstance(result, Node)
        user.replace_all_uses_with(result)
        result.meta.update(user.meta)
        graph.erase_node(user)
    return examples


def _placeholder(graph: Graph, name: str, example: Tensor) -> Node:
    """An input that Dynamo did not make: no source, and an address that stays."""
    node = graph.placeholder(name)
    node.meta["example_value"] = example
    node.meta["tensor_dict"] = {"_dynamo_static_input_type": "unguarded"}
    node._dynamo_source = None
    return node


def _empty_tensors(pattern: Pattern, weight: Tensor, fake_mode: Any) -> list[Tensor]:
    """What `SparseWeight` returns for such a weight, without data."""
    like: dict[str, Any] = {"device": weight.device}
    with fake_mode:
        return [
            torch.empty(pattern.values_shape, dtype=weight.dtype, **like),
            torch.empty(pattern.index_shape, dtype=pattern.index_dtype, **like),
            torch.empty(0, dtype=torch.int32, **like),
            torch.empty(0, dtype=weight.dtype, **like),
        ]


def _trace_linear(pattern: Pattern, dtype: torch.dtype, bias: bool) -> Graph:
    """`pattern.linear` as a graph of ops, for any leading dimensions of its input."""
    from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
    from torch.fx.experimental.proxy_tensor import make_fx

    def compute(x: Tensor, values: Tensor, index: Tensor, perm: Tensor, bias: Tensor) -> Tensor:
        return pattern.linear(x, values, index, perm, bias)

    with (
        torch._guards.tracing(None),
        unset_fake_temporarily(),
        FakeTensorMode() as fake_mode,
        torch.no_grad(),
        torch._C._DisableAutocast(),
    ):
        x = torch.empty(2, pattern.in_features, dtype=dtype)
        *tensors, absent = _empty_tensors(pattern, x, fake_mode)
        added = x.new_empty(pattern.out_features) if bias else absent
        return make_fx(compute, pre_dispatch=True)(x, *tensors, added).graph
