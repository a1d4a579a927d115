"""The projections a module tree holds, before anything is said about their roles."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from padst_fx.layers.dense import hugging_face_conv1d
from padst_fx.projections.projection import Projection

ATTENTION_ROLES = {"q_proj": "q", "k_proj": "k", "v_proj": "v", "out_proj": "attn_out"}
INPUT_WEIGHTS = ("q_proj_weight", "k_proj_weight", "v_proj_weight")
HOOKS = {
    "_forward_pre_hooks": "forward pre-hook",
    "_forward_hooks": "forward hook",
    "_backward_pre_hooks": "backward pre-hook",
    "_backward_hooks": "backward hook",
    "_state_dict_pre_hooks": "state_dict pre-hook",
    "_state_dict_hooks": "state_dict hook",
    "_load_state_dict_pre_hooks": "load_state_dict pre-hook",
    "_load_state_dict_post_hooks": "load_state_dict post-hook",
}


@dataclass(frozen=True)
class Candidate:
    """A projection and the module that computes it. Candidates that share a weight share `flow`."""

    projection: Projection
    module: nn.Module
    flow: str


def candidates(model: nn.Module) -> list[Candidate]:
    """Every projection of the tree with role "other", in registration order, each module once."""
    ties = _Ties(model)
    attentions = [m for m in model.modules() if isinstance(m, nn.MultiheadAttention)]
    inside_attention = {id(attention.out_proj) for attention in attentions}
    found: list[Candidate] = []
    for name, module in model.named_modules():
        if id(module) in inside_attention:
            continue
        if isinstance(module, nn.MultiheadAttention):
            found.extend(_attention(name, module, ties))
        elif (kind := _kind(module)) is not None:
            found.append(_linear(name, module, kind, ties))
    return found


def has_projections(module: nn.Module) -> bool:
    return any(
        isinstance(child, nn.MultiheadAttention) or _kind(child) is not None
        for child in module.modules()
    )


def _kind(module: nn.Module) -> str | None:
    """ "linear", "conv1d" or None. A module that was never imported cannot be in the tree."""
    if isinstance(module, nn.Linear):
        return "linear"
    conv1d = hugging_face_conv1d()
    if conv1d is not None and isinstance(module, conv1d):
        return "conv1d"
    return None


def _linear(name: str, module: nn.Module, kind: str, ties: _Ties) -> Candidate:
    if kind == "linear":
        shape = (int(module.out_features), int(module.in_features))  # type: ignore[arg-type]
        stock: type[nn.Module] | None = nn.Linear
    else:
        shape = (int(module.nf), int(module.nx))  # type: ignore[arg-type]
        stock = hugging_face_conv1d()
    assert stock is not None
    projection = Projection(
        name=name,
        role="other",
        shape=shape,
        owner=name,
        kind=kind,
        tied_with=ties.other_name(module, "weight"),
        unsupported=_obstacle(name, module, stock, ("weight",)),
    )
    return Candidate(projection, module, name)


def _attention(name: str, module: nn.MultiheadAttention, ties: _Ties) -> Iterator[Candidate]:
    packed = module._qkv_same_embed_dim
    inputs = (module.embed_dim, module.kdim, module.vdim, module.embed_dim)
    weights = ("in_proj_weight",) if packed else INPUT_WEIGHTS
    obstacle = _obstacle(name, module, nn.MultiheadAttention, weights)
    if obstacle is None and (out := _obstacle("out_proj", module.out_proj, nn.Linear, ("weight",))):
        obstacle = f"its out_proj cannot be replaced: {out}"
    obstacle = obstacle or _split_obstacle(module, (*weights, "in_proj_bias"), ties)
    for slot, width in zip(ATTENTION_ROLES, inputs, strict=True):
        unsupported = obstacle
        if slot == "out_proj":
            flow, tied = slot, ties.other_name(module.out_proj, "weight")
            unsupported = obstacle or ties.other_holder(module.out_proj, module)
        else:
            flow = "in_proj" if packed else slot
            tied = ties.other_name(module, f"{flow}_weight")
        projection = Projection(
            name=join(name, slot),
            role="other",
            shape=(module.embed_dim, width),
            owner=name,
            kind="attention",
            tied_with=tied,
            unsupported=unsupported,
        )
        yield Candidate(projection, module, join(name, flow))


def _split_obstacle(
    module: nn.MultiheadAttention, tensors: tuple[str, ...], ties: _Ties
) -> str | None:
    """Why the attention cannot be taken apart: even one sparse projection needs all inputs split"""
    for tensor in tensors:
        if (other := ties.other_name(module, tensor)) is not None:
            return f"the attention's {tensor} is tied with {other}, splitting it would untie them"
    return None


def join(*names: str) -> str:
    return ".".join(name for name in names if name)


def _obstacle(
    name: str, module: nn.Module, stock: type[nn.Module], weights: tuple[str, ...]
) -> str | None:
    """Why the module cannot be replaced by one that computes the same from its weights alone."""
    kind = type(module).__name__
    if not name:
        return "it is the model itself, so there is no parent module to replace it in"
    if type(module).forward is not stock.forward:
        return f"its class {kind} has its own forward"
    if "forward" in vars(module):
        return "its forward was replaced on the instance"
    if parametrize.is_parametrized(module):
        names = ", ".join(module.parametrizations.keys())  # type: ignore[operator, union-attr]
        return f"it is parametrized (torch.nn.utils.parametrize) in {names}"
    for weight in weights:
        if (reason := _weight_obstacle(module, weight)) is not None:
            return reason
    return _hook_obstacle(module)


def _hook_obstacle(module: nn.Module) -> str | None:
    """The first hook of the module or of one inside, which a replacement would not have."""
    for name, inner in module.named_modules():
        for attribute, kind in HOOKS.items():
            if getattr(inner, attribute, None):
                holder = f"its {name}" if name else "it"
                return f"{holder} has a {kind}, which would be lost"
    return None


def _weight_obstacle(module: nn.Module, name: str) -> str | None:
    """Why the weight is not a plain dense floating-point parameter, or None when it is."""
    parameter = module._parameters.get(name)
    if parameter is None:
        rest = ", ".join(key for key in vars(module)["_parameters"] if key.startswith(name))
        computed = f", it is computed from {rest} before each forward" if rest else ""
        return f"its {name} is not a parameter of its own{computed}"
    if is_lazy(parameter):
        return "it is lazy and not initialised: run the model once first"
    if not isinstance(parameter.data, torch.Tensor) or type(parameter.data) is not torch.Tensor:
        return f"its {name} is a {type(parameter.data).__name__}, not a plain tensor"
    if parameter.layout != torch.strided:
        return f"its {name} has layout {parameter.layout}, not torch.strided"
    if not parameter.is_floating_point():
        return f"its {name} has dtype {parameter.dtype}, not a floating-point one"
    return None


class _Ties:
    """Finds parameters that lie in the same memory."""

    def __init__(self, model: nn.Module) -> None:
        self.by_storage: dict[int, list[tuple[str, nn.Parameter]]] = {}
        for prefix, module in model.named_modules():
            for name, parameter in module._parameters.items():
                if parameter is not None and not is_lazy(parameter):
                    entry = (join(prefix, name), parameter)
                    self.by_storage.setdefault(_storage(parameter), []).append(entry)
        self.first_names = {id(module): name for name, module in model.named_modules()}
        self.holders: dict[int, list[nn.Module]] = {}
        for module in model.modules():
            for child in module.children():
                self.holders.setdefault(id(child), []).append(module)

    def other_holder(self, module: nn.Module, holder: nn.Module) -> str | None:
        """A reason against replacing a module that another than `holder` has as a child, too."""
        for other in self.holders[id(module)]:
            if other is not holder:
                name = self.first_names[id(other)] or "the model itself"
                return f"its module is also a child of {name} ({type(other).__name__})"
        return None

    def other_name(self, module: nn.Module, name: str) -> str | None:
        """The first parameter, elsewhere in the model, that overlaps this one in memory."""
        parameter = module._parameters.get(name)
        if parameter is None or is_lazy(parameter):
            return None
        own = join(self.first_names[id(module)], name)
        for other_name, other in self.by_storage[_storage(parameter)]:
            if other_name != own and (other is parameter or _overlap(other, parameter)):
                return other_name
        return None


def _storage(tensor: torch.Tensor) -> int:
    """A number that views of one storage share; a tensor without a storage shares it with none."""
    try:
        return tensor.untyped_storage()._cdata
    except (NotImplementedError, RuntimeError):
        return id(tensor)


def _overlap(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two views of one storage have bytes in common, by the range each spans."""
    (a_start, a_end), (b_start, b_end) = _byte_range(a), _byte_range(b)
    return a_start < b_end and b_start < a_end


def _byte_range(tensor: torch.Tensor) -> tuple[int, int]:
    start = int(tensor.storage_offset()) * tensor.element_size()
    if tensor.numel() == 0:
        return start, start
    pairs = zip(tensor.shape, tensor.stride(), strict=True)
    last = sum((int(size) - 1) * int(stride) for size, stride in pairs)
    return start, start + (last + 1) * tensor.element_size()
