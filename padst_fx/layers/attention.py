"""A drop-in for `nn.MultiheadAttention` whose four projections are modules of their own."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from padst_fx.layers.attention_weights import PROJECTIONS, join_projections, split_projections


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
    q_proj_weight = None
    k_proj_weight = None
    v_proj_weight = None

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
        """The same attention with its projections split into four `nn.Linear`.

        `out_proj`, `bias_k` and `bias_v` are its own, the others have copies of their weights.
        """
        attention = cls(mha)
        for name, linear in split_projections(mha).items():
            attention.add_module(name, linear)
        attention.training = mha.training
        return attention

    def to_dense(self, dense: Mapping[nn.Module, nn.Module] | None = None) -> nn.MultiheadAttention:
        """Back to `nn.MultiheadAttention`.

        `dense` has what to take for projections that are sparse. Raises `TypeError` for a
        projection that is then no `nn.Linear`.
        """
        linears: dict[str, nn.Linear] = {}
        for name in PROJECTIONS:
            projection = self.get_submodule(name)
            linear = projection if dense is None else dense.get(projection, projection)
            if not isinstance(linear, nn.Linear):
                raise TypeError(f"{name} is a {type(linear).__name__}, not nn.Linear")
            linears[name] = linear
        return join_projections(self, linears)

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
        check_dimensions(query, key, value, key_padding_mask, attn_mask)
        batched = query.dim() == 3
        query, key, value = (self._batch_first(t, batched) for t in (query, key, value))
        if key_padding_mask is not None and not batched:
            key_padding_mask = key_padding_mask.unsqueeze(0)
        check_sizes(query, key, value)
        q = self._heads(self.q_proj(query))
        k = self._heads(self._extend(self.k_proj(key), self.bias_k))
        v = self._heads(self._extend(self.v_proj(value), self.bias_v))
        mask = self._mask(attn_mask, key_padding_mask, q, k, key.shape[1])
        drop = self.dropout if self.training else 0.0
        if need_weights:
            scores = (q * self.head_dim**-0.5) @ k.transpose(-2, -1)
            weights = torch.softmax(scores if mask is None else scores + mask, dim=-1)
            weights = F.dropout(weights, drop)
            heads = weights @ v
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
            per_head = attn_mask.dim() == 3
            check_attn_mask(attn_mask, (batch * heads,) * per_head + (queries, length))
            shape = (batch, heads) if per_head else (1, 1)
            attn_mask = additive("attn_mask", attn_mask, q.dtype)
            parts.append(attn_mask.reshape(*shape, queries, length))
        if key_padding_mask is not None:
            check_padding_mask(key_padding_mask, (batch, length))
            padding = additive("key_padding_mask", key_padding_mask, q.dtype)
            parts.append(padding.reshape(batch, 1, 1, length))
        if not parts:
            return None
        mask = parts[0] if len(parts) == 1 else parts[0] + parts[1]
        return F.pad(mask, (0, k.shape[2] - length))


def additive(name: str, mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A bool mask (True is barred) as zeros and -inf; a floating one in `dtype`."""
    if mask.dtype == torch.bool:
        return torch.zeros_like(mask, dtype=dtype).masked_fill_(mask, -torch.inf)
    if not mask.is_floating_point():
        raise AssertionError(
            f"only bool and floating types of {name} are supported, got {mask.dtype}"
        )
    return mask.to(dtype)


def check_dimensions(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_padding_mask: Tensor | None,
    attn_mask: Tensor | None,
) -> None:
    """Raise `AssertionError`, as torch does, unless all are batched or none is."""
    dim = query.dim()
    if dim not in (2, 3):
        raise AssertionError(f"query must be 2-D (unbatched) or 3-D (batched), got {dim}-D")
    for name, tensor, allowed in (
        ("key", key, (dim,)),
        ("value", value, (dim,)),
        ("key_padding_mask", key_padding_mask, (dim - 1,)),
        ("attn_mask", attn_mask, (2, 3)),
    ):
        if tensor is not None and tensor.dim() not in allowed:
            valid = " or ".join(f"{d}-D" for d in allowed)
            raise AssertionError(
                f"for a {dim}-D query, {name} must be {valid}, got {tensor.dim()}-D"
            )


def check_sizes(query: Tensor, key: Tensor, value: Tensor) -> None:
    """Raise unless the batch sizes are equal and keys and values equally many (`[N, L, E]`)."""
    if key.shape[:2] != value.shape[:2]:
        raise AssertionError(
            f"key's batch and sequence dims {tuple(key.shape[:2])} do not match "
            f"value's {tuple(value.shape[:2])}"
        )
    if query.shape[0] != key.shape[0]:
        raise RuntimeError(
            f"query has batch size {query.shape[0]}, but key and value {key.shape[0]}"
        )


def check_attn_mask(mask: Tensor, shape: tuple[int, ...]) -> None:
    """Raise `RuntimeError`, as torch does, for a mask of another shape."""
    if mask.shape != shape:
        raise RuntimeError(
            f"The shape of the {mask.dim()}D attn_mask is {tuple(mask.shape)}, "
            f"but should be {shape}."
        )


def check_padding_mask(mask: Tensor, shape: tuple[int, int]) -> None:
    """Raise `AssertionError`, as torch does, for a mask of another shape."""
    if mask.shape != shape:
        raise AssertionError(
            f"expecting key_padding_mask shape of {shape}, but got {tuple(mask.shape)}"
        )
