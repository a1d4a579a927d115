"""The model as an exported graph with tensors of its own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import Graph, GraphModule, Node, Tracer

from padst_fx.compiled import uncompiled
from padst_fx.projections.graph import arguments, exported

# Constants grow no larger by being computed ahead than this many times what they are made of.
GROWTH = 1


def capture(model: nn.Module, example_inputs: Any, dynamic_shapes: Any = None) -> GraphModule:
    """The exported graph of `model` in functional form, with copies of its tensors.

    What depends on no input is computed here, once. Raises `TypeError` for example inputs of
    another kind and `ValueError` for a model that cannot be exported with them.
    """
    args, kwargs = arguments(example_inputs)
    program = exported(uncompiled(model), args, kwargs, dynamic_shapes)
    if any(_writes(node) for node in program.graph.nodes):
        program = program.run_decompositions({})
    module = _unlifted(program)
    _unify_constants(module)
    _compute_constants(module)
    _own_tensors(module)
    module.graph.lint()
    module.recompile()
    return module


def _writes(node: Node) -> bool:
    target = node.target
    return isinstance(target, torch._ops.OpOverload) and target._schema.is_mutable


def _unlifted(program: ExportedProgram) -> GraphModule:
    """A graph module that can be trained, evaluated, copied and traced like any other."""
    module = program.module(check_guards=False)
    # A saved graph module is read back by its tracer, and export's cannot be made again.
    module.graph._tracer_cls = Tracer
    return GraphModule(module, module.graph)


def tensor_at(module: nn.Module, target: str) -> Any:
    """The attribute at a qualified name."""
    value: Any = module
    for part in target.split("."):
        value = getattr(value, part)
    return value


def put_tensor(module: nn.Module, target: str, tensor: Tensor) -> None:
    """Make a tensor a buffer (or a parameter, where one is there) at a qualified name."""
    *path, name = target.split(".")
    owner: nn.Module = module
    for part in path:
        if part not in owner._modules:
            owner.add_module(part, nn.Module())
        owner = owner.get_submodule(part)
    if name in owner._parameters:
        owner._parameters[name] = nn.Parameter(tensor, requires_grad=False)
        return
    owner.__dict__.pop(name, None)
    owner._buffers.pop(name, None)
    owner.register_buffer(name, tensor)


def _unify_constants(module: GraphModule) -> None:
    """One node for each tensor, whatever its names: tied weights stay tied."""
    first: dict[tuple[Any, ...], Node] = {}
    for node in list(module.graph.find_nodes(op="get_attr")):
        tensor = tensor_at(module, str(node.target))
        if not isinstance(tensor, Tensor):
            continue
        node.meta.setdefault("val", tensor)
        key = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype, tensor.device)
        kept = first.setdefault(key if tensor.numel() else (id(tensor),), node)
        if kept is not node:
            node.replace_all_uses_with(kept)
            module.graph.erase_node(node)
    _constants_first(module.graph)


def _constants_first(graph: Graph) -> None:
    """All constants at the start, so that any node may read any of them."""
    anchor = next(node for node in graph.nodes if node.op != "get_attr")
    for node in list(graph.nodes):
        if node.op == "get_attr":
            anchor.prepend(node)


@torch.no_grad()
def _compute_constants(module: GraphModule) -> None:
    """Replace what is computed from constants alone, unless that would take more memory."""
    known: dict[Node, Any] = {
        node: tensor_at(module, str(node.target))
        for node in module.graph.find_nodes(op="get_attr")
    }
    replaced: list[tuple[Node, Tensor]] = []
    for node in module.graph.nodes:
        if _is_constant(node, known):
            value = _evaluated(node, known)
            if isinstance(value, Tensor):
                known[node] = value
                replaced.append((node, value))
    for number, (node, value) in enumerate(replaced):
        if all(user in known for user in node.users):
            continue
        home = _home(node)
        name = f"{home}.constant_{number}" if home else f"constant_{number}"
        put_tensor(module, name, value.detach().clone())
        with module.graph.inserting_before(next(iter(module.graph.nodes))):
            constant = module.graph.get_attr(name)
        constant.meta["val"] = value
        node.replace_all_uses_with(constant)
    module.graph.eliminate_dead_code()


def _home(node: Node) -> str:
    """The module whose tensor a constant is made of first."""
    while node.op != "get_attr":
        node = node.all_input_nodes[0]
    return str(node.target).rpartition(".")[0]


def _is_constant(node: Node, known: dict[Node, Any]) -> bool:
    inputs = node.all_input_nodes
    return (
        node.op == "call_function"
        and isinstance(node.target, torch._ops.OpOverload)
        and torch.Tag.nondeterministic_seeded not in node.target.tags
        and not node.target._schema.is_mutable
        and bool(inputs)
        and all(isinstance(known.get(source), Tensor) for source in inputs)
        and isinstance(node.meta.get("val"), Tensor)
    )


def _evaluated(node: Node, known: dict[Node, Any]) -> Tensor | None:
    limit = GROWTH * max(known[source].numel() for source in node.all_input_nodes)
    if node.meta["val"].numel() > limit:
        return None
    args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), lambda source: known[source])
    assert isinstance(node.target, torch._ops.OpOverload)
    return node.target(*args, **kwargs)


def _own_tensors(module: GraphModule) -> None:
    """Copies without gradients in place of the model's own tensors; what is unused goes."""
    used = {str(node.target) for node in module.graph.find_nodes(op="get_attr")}
    module.delete_all_unused_submodules()
    for target in used:
        tensor = tensor_at(module, target)
        if isinstance(tensor, Tensor):
            put_tensor(module, target, tensor.detach().clone())
    drop_unused(module)


def drop_unused(module: GraphModule) -> None:
    """Delete the tensors that no node reads."""
    used = {str(node.target) for node in module.graph.find_nodes(op="get_attr")}
    for prefix, owner in list(module.named_modules()):
        for held in (owner._parameters, owner._buffers):
            for name in list(held):
                if (f"{prefix}.{name}" if prefix else name) not in used:
                    del held[name]
