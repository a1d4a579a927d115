"""Roles from the names and the structure of the module tree."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import pairwise

from torch import nn

from padst_fx.projections.inventory import (
    ATTENTION_ROLES,
    Candidate,
    candidates,
    has_projections,
    join,
)
from padst_fx.projections.projection import Projection

# The first rule whose pattern ends the qualified name (at a dot) gives the role.
NAME_RULES = tuple(
    (re.compile(rf"(^|\.)({pattern})$", re.IGNORECASE), role)
    for pattern, role in (
        (r"(\w*pooler|predictions\.transform)(\.\w+)*", "other"),
        (r"(classifier|classification_head)\.dense|pre_classifier", "other"),
        (r"(classifier|classification_head)\.out_proj", "head"),
        (r"(lm_)?head|classifier|score|qa_outputs|predictions\.decoder|seq_relationship", "head"),
        (r"embed_out|proj_out|logits|text_projection|visual_projection", "head"),
        (r"c_attn|qkv|qkv_proj|query_key_value|wqkv|to_qkv|to_kv|kv_proj|kv", "qkv"),
        (r"\w*(attn|attention)\w*\.in_proj", "qkv"),
        (r"q|q_proj|query|(pos_)?query_proj|q_lin|q_attn|wq|w_q|to_q|linear_q", "q"),
        (r"k|k_proj|key|(pos_)?key_proj|k_lin|wk|w_k|to_k|linear_k", "k"),
        (r"v|v_proj|value|value_proj|v_lin|wv|w_v|to_v|linear_v", "v"),
        (r"\w*(attn|attention)\w*\.(output\.)?(out|out_proj|o|o_proj|c_proj|proj)", "attn_out"),
        (r"\w*(attn|attention)\w*\.(output\.)?(dense|wo|w_o|out_lin|to_out|to_out\.0)", "attn_out"),
        (r"o_proj", "attn_out"),
        (r"gate_proj|wi_0|feed_forward\.w1", "mlp_gate"),
        (r"fc1|fc_in|lin1|linear1|wi|wi_1|c_fc|up_proj|gate_up_proj", "mlp_in"),
        (r"intermediate\.dense|ffn|dense_h_to_4h|feed_forward\.w3", "mlp_in"),
        (r"fc2|fc_out|lin2|linear2|wo|c_proj|down_proj", "mlp_out"),
        (r"output\.dense|ffn_output|dense_4h_to_h|feed_forward\.w2", "mlp_out"),
    )
)

NOT_ACTIVATIONS = (nn.MultiheadAttention, nn.Softmax, nn.LogSoftmax, nn.Softmax2d)
PASS_THROUGH = (
    nn.Identity,
    nn.Flatten,
    nn.Unflatten,
    nn.LayerNorm,
    nn.RMSNorm,
    nn.GroupNorm,
    nn.modules.batchnorm._NormBase,
    nn.modules.dropout._DropoutNd,
)


def from_tree(model: nn.Module) -> list[Projection]:
    """The projections of `model`, in registration order, with roles read from its names."""
    found = candidates(model)
    roles = {c.projection.name: named_role(c.projection) for c in found}
    if found and roles[found[-1].projection.name] is None and _ends_the_model(model, found[-1]):
        roles[found[-1].projection.name] = "head"
    for name, role in _sequential_roles(model, roles).items():
        if roles.get(name) is None:
            roles[name] = role
    return [replace(c.projection, role=roles[c.projection.name] or "other") for c in found]


def named_role(projection: Projection) -> str | None:
    """The role that the projection's name gives away, or None."""
    if projection.kind == "attention":
        return ATTENTION_ROLES[projection.name.rpartition(".")[2]]
    for pattern, role in NAME_RULES:
        if pattern.search(projection.name):
            return role
    return None


def _is_activation(module: nn.Module) -> bool:
    places = ("torch.nn.modules.activation", "transformers.activations")
    return type(module).__module__ in places and not isinstance(module, NOT_ACTIVATIONS)


def _ends_the_model(model: nn.Module, last: Candidate) -> bool:
    """Whether the last projection stands outside every repeated block and feeds no activation."""
    ancestors = last.projection.name.split(".")[:-1]
    for depth, child_name in enumerate(ancestors):
        container = model.get_submodule(".".join(ancestors[:depth]))
        if _is_repeated(container, container.get_submodule(child_name)):
            return False
    if isinstance(model.get_submodule(".".join(ancestors)), nn.ModuleList):
        return False
    return not any(
        _is_activation(following)
        for chain in _sequential_chains(model)
        for (_, module), (_, following) in pairwise(chain)
        if module is last.module
    )


def _is_repeated(container: nn.Module, block: nn.Module) -> bool:
    """Whether `block` is an item of a list, or has a sibling of its class with projections too."""
    if isinstance(container, nn.ModuleList):
        return True
    if not isinstance(container, nn.Sequential):
        return False
    same = [child for child in container if type(child) is type(block)]
    return sum(has_projections(child) for child in same) > 1


def _sequential_roles(model: nn.Module, roles: dict[str, str | None]) -> dict[str, str]:
    """mlp_in for `Linear, activation, Linear` unless the second is a head, mlp_out for the second.

    `roles` has the roles known so far.
    """
    found: dict[str, str] = {}
    for chain in _sequential_chains(model):
        names = {name for name, _ in chain if name in roles}
        for (first, _), (_, activation), (second, _) in zip(
            chain, chain[1:], chain[2:], strict=False
        ):
            if not (first in names and second in names and _is_activation(activation)):
                continue
            if roles[second] != "head":
                found[first] = "mlp_in"
                found.setdefault(second, "mlp_out")
    return found


def _sequential_chains(model: nn.Module) -> list[list[tuple[str, nn.Module]]]:
    """The modules of every outermost nn.Sequential in order, nested ones opened, without those that
    only pass features on."""
    chains: list[list[tuple[str, nn.Module]]] = []
    inner: set[int] = set()
    for name, module in model.named_modules():
        if isinstance(module, nn.Sequential) and id(module) not in inner:
            chains.append(list(_opened(name, module, inner)))
    return chains


def _opened(name: str, module: nn.Sequential, inner: set[int]) -> list[tuple[str, nn.Module]]:
    steps: list[tuple[str, nn.Module]] = []
    for child_name, child in module.named_children():
        if isinstance(child, nn.Sequential):
            inner.add(id(child))
            steps.extend(_opened(join(name, child_name), child, inner))
        elif not isinstance(child, PASS_THROUGH):
            steps.append((join(name, child_name), child))
    return steps
