"""A drop-in for `nn.MultiheadAttention` whose four projections are modules of their own."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "out_proj")


class MultiheadAttention(nn.Module):
    """`nn.MultiheadAttention` with `q_proj`, `k_proj`, `v_proj` and `out_proj` as submodules.

    The call, the masks, `need_weights`, `batch_first`, `kdim`/`vdim`, `add_bias_kv` and
    `add_zero_attn` behave as there; each projection may be dense or sparse. Made by
    `from_dense`, turned back by `to_dense`.
    """

    # What nn.TransformerEncoderLayer reads before taking its fused path, which needs one dense
    # packed weight: these values make it call this module instead.
    _qkv_same_embed_dim = False
    in_proj_weight = None
    in_proj_bias = None

    q_proj: nn.Module
    k_proj: nn.Module
    v_proj: nn.Module
    out_proj: nn.Module
    bias_k: nn.Parameter | None
    bias_v: nn.Parameter | None

    def __init__(self, mha: nn.MultiheadAttention) -> None:
        super().__init__()
        self.embed_dim = mha.embed_dim
        self.kdim = mha.kdim
        self.vdim = mha.vdim
        self.num_heads = mha.num_heads
        self.head_dim = mha.head_dim
        self.dropout = mha.dropout
        self.batch_first = mha.batch_first
        self.add_zero_attn = mha.add_zero_attn
        for name in ("bias_k", "bias_v"):
            self.register_parameter(name, mha._parameters.get(name))

    @classmethod
    def from_dense(cls, mha: nn.MultiheadAttention) -> MultiheadAttention:
        """The same attention with its projections split into four `nn.Linear`."""
        attention = cls(mha)
        for name, linear in split_projections(mha).items():
            attention.add_module(name, linear)
        return attention.train(mha.training)

    def to_dense(self) -> nn.MultiheadAttention:
        """Back to `nn.MultiheadAttention`; every projection must be an `nn.Linear` by now."""
        linears: dict[str, nn.Linear] = {}
        for name in PROJECTIONS:
            linear = self.get_submodule(name)
            if not isinstance(linear, nn.Linear):
                raise TypeError(f"{name} is a {type(linear).__name__}, not nn.Linear")
            linears[name] = linear
        return join_projections(self, linears).train(self.training)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attention as `nn.MultiheadAttention.forward` defines it."""
        if is_causal and attn_mask is None:
            raise RuntimeError("Need attn_mask if specifying the is_causal hint.")
        batched = query.dim() == 3
        query, key, value = (self._batch_first(t, batched) for t in (query, key, value))
        if key_padding_mask is not None and not batched:
            key_padding_mask = key_padding_mask.unsqueeze(0)
        q = self._heads(self.q_proj(query))
        k = self._heads(self._extend(self.k_proj(key), self.bias_k))
        v = self._heads(self._extend(self.v_proj(value), self.bias_v))
        mask = self._mask(attn_mask, key_padding_mask, q, k, key.shape[1])
        drop = self.dropout if self.training else 0.0
        if need_weights:
            scores = (q * self.head_dim**-0.5) @ k.transpose(-2, -1)
            weights = torch.softmax(scores if mask is None else scores + mask, dim=-1)
            heads = F.dropout(weights, drop) @ v
        else:
            weights = None
            heads = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=drop)
        output = self.out_proj(heads.transpose(1, 2).flatten(2))
        if weights is not None and average_attn_weights:
            weights = weights.mean(dim=1)
        if not batched:
            return output.squeeze(0), None if weights is None else weights.squeeze(0)
        return output if self.batch_first else output.transpose(0, 1), weights

    def _batch_first(self, tensor: Tensor, batched: bool) -> Tensor:
        if not batched:
            return tensor.unsqueeze(0)
        return tensor if self.batch_first else tensor.transpose(0, 1)

    def _heads(self, tensor: Tensor) -> Tensor:
        """`[N, L, E] -> [N, heads, L, head_dim]`."""
        return tensor.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)

    def _extend(self, projected: Tensor, bias: Tensor | None) -> Tensor:
        """Keys or values with the learned and the zero position appended."""
        batch, _, features = projected.shape
        if bias is not None:
            projected = torch.cat((projected, bias.expand(batch, 1, features)), dim=1)
        if self.add_zero_attn:
            projected = torch.cat((projected, projected.new_zeros(batch, 1, features)), dim=1)
        return projected

    def _mask(
        self,
        attn_mask: Tensor | None,
        key_padding_mask: Tensor | None,
        q: Tensor,
        k: Tensor,
        length: int,
    ) -> Tensor | None:
        """Both masks as one additive mask, open at the appended positions."""
        batch, heads, queries, _ = q.shape
        parts = []
        if attn_mask is not None:
            shape = (batch, heads) if attn_mask.dim() == 3 else (1, 1)
            parts.append(additive(attn_mask, q.dtype).reshape(*shape, queries, length))
        if key_padding_mask is not None:
            parts.append(additive(key_padding_mask, q.dtype).view(batch, 1, 1, length))
        if not parts:
            return None
        mask = parts[0] if len(parts) == 1 else parts[0] + parts[1]
        return F.pad(mask, (0, k.shape[2] - length))


def additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A bool mask (True is barred) as zeros and -inf; a floating one in `dtype`."""
    if mask.dtype == torch.bool:
        return torch.zeros_like(mask, dtype=dtype).masked_fill_(mask, -torch.inf)
    return mask.to(dtype)


def _linear(weight: Tensor, bias: Tensor | None, like: Tensor) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    linear.weight = nn.Parameter(weight.detach().clone(), requires_grad=like.requires_grad)
    if bias is not None:
        linear.bias = nn.Parameter(bias.detach().clone(), requires_grad=like.requires_grad)
    return linear


def split_projections(mha: nn.MultiheadAttention) -> dict[str, nn.Linear]:
    """The four projections of an attention as dense linears with copies of its weights."""
    if mha._qkv_same_embed_dim:
        weights = mha.in_proj_weight.chunk(3)
        owners = [mha.in_proj_weight] * 3
    else:
        owners = [mha.q_proj_weight, mha.k_proj_weight, mha.v_proj_weight]
        weights = tuple(owners)
    biases = (None,) * 3 if mha.in_proj_bias is None else mha.in_proj_bias.chunk(3)
    linears = {
        name: _linear(weight, bias, owner)
        for name, weight, bias, owner in zip(PROJECTIONS, weights, biases, owners, strict=False)
    }
    out = mha.out_proj
    linears["out_proj"] = _linear(out.weight, out.bias, out.weight)
    return linears


@torch.no_grad()
def join_projections(
    attention: MultiheadAttention, linears: dict[str, nn.Linear]
) -> nn.MultiheadAttention:
    """`nn.MultiheadAttention` from an attention's settings and four dense projections."""
    q, k, v, out = (linears[name] for name in PROJECTIONS)
    mha = nn.MultiheadAttention(
        attention.embed_dim,
        attention.num_heads,
        dropout=attention.dropout,
        bias=q.bias is not None,
        add_bias_kv=attention.bias_k is not None,
        add_zero_attn=attention.add_zero_attn,
        kdim=attention.kdim,
        vdim=attention.vdim,
        batch_first=attention.batch_first,
        device=q.weight.device,
        dtype=q.weight.dtype,
    )
    if mha._qkv_same_embed_dim:
        mha.in_proj_weight.copy_(torch.cat((q.weight, k.weight, v.weight)))
        mha.in_proj_weight.requires_grad_(q.weight.requires_grad)
    else:
        for name, linear in (("q", q), ("k", k), ("v", v)):
            getattr(mha, f"{name}_proj_weight").copy_(linear.weight)
            getattr(mha, f"{name}_proj_weight").requires_grad_(linear.weight.requires_grad)
    if mha.in_proj_bias is not None:
        mha.in_proj_bias.copy_(torch.cat((q.bias, k.bias, v.bias)))
        mha.in_proj_bias.requires_grad_(q.bias.requires_grad)
    mha.out_proj.weight = out.weight
    mha.out_proj.bias = out.bias
    if attention.bias_k is not None:
        mha.bias_k, mha.bias_v = attention.bias_k, attention.bias_v
    return mha
