"""The packed weights of `nn.MultiheadAttention` taken apart into four linears, and packed again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from padst_fx.layers.attention import MultiheadAttention

INPUTS = ("q_proj", "k_proj", "v_proj")
PROJECTIONS = (*INPUTS, "out_proj")


def split_projections(mha: nn.MultiheadAttention) -> dict[str, nn.Linear]:
    """The four projections of an attention as dense linears.

    The first three have copies of its weights and biases, each with the `requires_grad` of the
    tensor it comes from; `out_proj` is the attention's own module.
    """
    if mha._qkv_same_embed_dim:
        weights = _parts(mha.in_proj_weight)
    else:
        separate = (mha.q_proj_weight, mha.k_proj_weight, mha.v_proj_weight)
        weights = [_copy(weight, like=weight) for weight in separate]
    biases = [None] * 3 if mha.in_proj_bias is None else _parts(mha.in_proj_bias)
    linears = {
        name: _linear(weight, bias).train(mha.training)
        for name, weight, bias in zip(INPUTS, weights, biases, strict=True)
    }
    return {**linears, "out_proj": mha.out_proj}


def join_projections(
    attention: MultiheadAttention, linears: dict[str, nn.Linear]
) -> nn.MultiheadAttention:
    """`nn.MultiheadAttention` from an attention's settings and four dense projections.

    A packed tensor requires a gradient if any of its three parts does. `out_proj` becomes the
    attention's own module.
    """
    inputs = [linears[name] for name in INPUTS]
    mha = nn.MultiheadAttention(
        attention.embed_dim,
        attention.num_heads,
        dropout=attention.dropout,
        bias=inputs[0].bias is not None,
        add_zero_attn=attention.add_zero_attn,
        kdim=attention.kdim,
        vdim=attention.vdim,
        batch_first=attention.batch_first,
        device="meta",
    )
    if mha._qkv_same_embed_dim:
        mha.in_proj_weight = _packed([linear.weight for linear in inputs])
    else:
        for name, linear in zip(INPUTS, inputs, strict=True):
            setattr(mha, f"{name}_weight", _copy(linear.weight, like=linear.weight))
    if mha.in_proj_bias is not None:
        mha.in_proj_bias = _packed([linear.bias for linear in inputs])
    mha.bias_k, mha.bias_v = attention.bias_k, attention.bias_v
    mha.training = attention.training
    mha.add_module("out_proj", linears["out_proj"])
    return mha


def _parts(packed: Tensor) -> list[nn.Parameter]:
    return [_copy(part, like=packed) for part in packed.chunk(3)]


def _packed(parts: Sequence[Tensor]) -> nn.Parameter:
    trainable = any(part.requires_grad for part in parts)
    return nn.Parameter(torch.cat([part.detach() for part in parts]), requires_grad=trainable)


def _copy(tensor: Tensor, like: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor.detach().clone(), requires_grad=like.requires_grad)


def _linear(weight: nn.Parameter, bias: nn.Parameter | None) -> nn.Linear:
    out_features, in_features = weight.shape
    linear = nn.Linear(in_features, out_features, bias=bias is not None, device="meta")
    linear.weight = weight
    if bias is not None:
        linear.bias = bias
    return linear
