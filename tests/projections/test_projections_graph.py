"""Each rule of the dataflow on a module made for it. No module name says anything here."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from padst_fx.projections import find_projections

WIDTH = 8
TOKENS = 5


class Graph(nn.Module):
    """Linears `a`, `b`, ... of 8 x 8 unless `widths` says [out, in], put together by `compute`."""

    def __init__(
        self, compute: Callable[..., object], letters: str, **widths: tuple[int, int]
    ) -> None:
        super().__init__()
        self.compute = compute
        for letter in letters:
            out_features, in_features = widths.get(letter, (WIDTH, WIDTH))
            self.add_module(letter, nn.Linear(in_features, out_features))
        self.scale = nn.Parameter(torch.rand(WIDTH))
        self.register_buffer("table", torch.rand(TOKENS, WIDTH))
        self.register_buffer("cache", torch.zeros(2, 9, WIDTH))

    def forward(self, x: torch.Tensor) -> object:
        return self.compute(self, x)


def roles(compute: Callable[..., object], letters: str, **widths: tuple[int, int]) -> str:
    model = Graph(compute, letters, **widths)
    projections = find_projections(model, torch.rand(2, TOKENS, WIDTH))
    assert [p.name for p in projections] == list(letters)
    assert all(p.unsupported is None for p in projections)
    return " ".join(p.role for p in projections)


def heads(x: torch.Tensor, count: int = 2) -> torch.Tensor:
    return x.view(*x.shape[:2], count, -1).transpose(1, 2)


def merged(x: torch.Tensor) -> torch.Tensor:
    return x.transpose(1, 2).reshape(x.shape[0], x.shape[2], -1)


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return merged(F.scaled_dot_product_attention(heads(q), heads(k), heads(v)))


ATTENTION = "q k v attn_out"


def test_fused_attention() -> None:
    def compute(m: Graph, x: torch.Tensor) -> torch.Tensor:
        return x + m.d(attend(m.a(x), m.b(x), m.c(x)))

    assert roles(compute, "abcd") == ATTENTION


def test_the_argument_decides_and_not_the_order() -> None:
    def compute(m: Graph, x: torch.Tensor) -> torch.Tensor:
        return x + m.a(attend(m.d(x), m.c(x), m.b(x)))

    assert roles(compute, "abcd") == "attn_out v k q"


def test_arguments_given_by_name() -> None:
    def compute(m: Graph, x: torch.Tensor) -> torch.Tensor:
        y = F.scaled_dot_product_attention(value=m.c(x), key=m.b(x), query=m.a(x))
        return x + m.d(y)

    assert roles(compute, "abcd") == ATTENTION


@pytest.mark.parametrize("split", ["chunk", "split", "slice", "unbind", "unflatten"])
def test_packed_projection_split_apart(split: str) -> None:
    def parts(y: torch.Tensor) -> tuple[torch.Tensor, ...]:
        if split == "chunk":
            return y.chunk(3, dim=-1)
        if split == "split":
            return y.split(WIDTH, dim=-1)
        if split == "slice":
            return y[..., :WIDTH], y[..., WIDTH : 2 * WIDTH], y[..., 2 * WIDTH :]
        if split == "unbind":
            return y.view(2, TOKENS, 3, WIDTH).unbind(2)
        y = y.unflatten(-1, (3, WIDTH)).permute(2, 0, 1, 3).contiguous()
        return y[0], y[1], y[2]

    def compute(m: Graph, x: torch.Tensor) -> torch.Tensor:
        return x + m.b(attend(*parts(m.a(x))))

    assert roles(compute, "ab", a=(3 * WIDTH, WIDTH)) == "qkv attn_out"


def test_key_and_value_in_one_projection() -> None:
    def compute(m: Graph, x: torch.Tensor) -> torch.Tensor:
        return x + m.c(attend(m.a(x), *m.b(x).chunk(2, dim=-1)))

    assert roles(compute, "abc", b=(2 * WIDTH, WIDTH)) == "q qkv attn_out"


def softmax_in_float(scores: torch.Tensor) -> torch.Tensor:
    return F.dropout(scores.float().softmax(-1).to(scores.dtype), 0.1)


@pytest.mark.parametrize(
    "mask",
    [
        lambda m, s: s,
        lambda m, s: s + m.table[:, :TOKENS],
        lambda m, s: s.masked_fill(m.table[:, :TOKENS] > 0.5, -1e9),
        lambda m, s: torch.where(m.table[:, :TOKENS] > 0.5, s, -1e9),
        lambda m, s: s.add_(m.table[:, :TOKENS]),
        lambda m, s: 5 * torch.tanh(s / 5),
        lambda m, s: torch.cat([s, s[..., :1]], dim=-1)[..., :-1],
    ],
    ids=["none", "added", "filled", "where", "in_place", "capped", "sinks"],
)
def test_attention_written_out(mask: Callable) -> None:
    def compute(m: Graph, x: torch.Tensor) -> torch.Tensor:
        q, k, v = heads(m.a(x)), heads(m.b(x)), heads(m.c(x))
        scores = mask(m, torch.matmul(q, k.transpose(-1, -2)) / math.sqrt(WIDTH))
        return x + m.d(merged(softmax_in_float(scores) @ v))

    assert roles(compute, "abcd") == ATTENTION


def test_attention_by_batched_products_with_a_bias() -> None:
    def compute(m: Graph, x: torch.Tensor) -> torch.Tensor:
        bias = m.table[:, :TOKENS].expand(2, TOKENS, TOKENS)
        scores = torch.baddbmm(bias, m.a(x), m.b(x).transpose(1, 2))
        return x + m.d(torch.bmm(scores.softmax(-1), m.c(x)))

    assert roles(compute, "abcd") == ATTENTION


@pytest.mark.parametrize(
    ("scores", "axis"),
    [
        ("bqd,bkd->bqk", -1),
        ("bkd,bqd->bqk", -1),
        ("bqd,bkd->bkq", -2),
        ("bqd,bkd->bkq", 1),
        ("bkd,bqd->bkq", 1),
    ],
)
def test_attention_by_einsum(scores: str, axis: int) -> None:
    result = scores.partition("->")[2]

    def compute(m: Graph, x: torch.Tensor) -> torch.Tensor:
        factors = (m.a(x), m.b(x)) if scores.startswith("bq") else (m.b(x), m.a(x))
        weights = torch.einsum(scores, *factors).softmax(axis)
        return x + m.d(torch.einsum(f"{result},bkd->bqd", weights, m.c(x)))

    assert roles(compute, "abcd") == ATTENTION


def test_attention_by_einsum_without_an_arrow() -> None:
    def compute(m: Graph, x: torch.Tensor) -> torch.Tensor:
        weights = torch.einsum("jd,id", m.b(x)[0], m.a(x)[0]).softmax(-1)
        return x + m.d(weights @ m.c(x))

    assert roles(compute, "abcd") == ATTENTION


@pytest.mark.parametrize("flip", [torch.Tensor.mT.__get__, lambda s: s.permute(0, 2, 1)])
def test_scores_computed_transposed(flip: Callable) -> None:
    def compute(m: Graph, x: torch.Tensor) -> torch.Tensor:
        weights = flip(m.b(x) @ m.a(x).transpose(1, 2)).softmax(-1)
        return x + m.d(weights @ m.c(x))

    assert roles(compute, "abcd") == ATTENTION


def test_values_on_the_left_of_the_weights() -> None:
    def compute(m: Graph, x: torch.Tensor) -> torch.Tensor:
        weights = (m.a(x) @ m.b(x).mT).softmax(-1)
        return x + m.d((m.c(x).mT @ weights.mT).mT)

    assert roles(compute, "abcd") == ATTENTION


def test_rotary_positions_norms_and_grouped_queries() -> None:
    def rotated(m: Graph, x: torch.Tensor) -> torch.Tensor:
        half = x.shape[-1] // 2
        turned = torch.cat([-x[..., half:], x[..., :half]], dim=-1)
        angle = m.table[:, : x.shape[-1]]
        return x * angle.cos() + turned * angle.sin()

    def normed(m: Graph, x: torch.Tensor) -> torch.Tensor:
        size = x.shape[-1]
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * m.scale[:size]

    def compute(m: Graph, x: torch.Tensor) -> torch.Tensor:
        q = rotated(m, normed(m, heads(m.a(x), 4)))
        k = rotated(m, normed(m, heads(m.b(x), 2))).repeat_interleave(2, dim=1)
        v = heads(m.c(x), 2)[:, :, None].expand(2, 2, 2, TOKENS, 2).reshape(2, 4, TOKENS, 2)
        return x + m.d(merged(F.scaled_dot_product_attention(q, k, v)))

    assert roles(compute, "abcd", b=(4, WIDTH), c=(4, WIDTH)) == ATTENTION


def test_keys_and_values_kept_in_a_cache() -> None:
    def compute(m: Graph, x: torch.Tensor) -> torch.Tensor:
        places = torch.arange(TOKENS)
        keys = m.cache.clone()
        keys.index_copy_(1, places, m.b(x))
        values = torch.cat([x, m.c(x)], dim=1)[:, :9]
        return x + m.d(F.scaled_dot_product_attention(m.a(x), keys, values))

    assert roles(compute, "abcd") == ATTENTION


def test_writing_into_a_slice_reaches_the_whole_tensor() -> None:
    def compute(m: Graph, x: torch.Tensor) -> torch.Tensor:
        keys = torch.zeros(2, 9, WIDTH)
        keys[:, :TOKENS].copy_(m.b(x))
        values = torch.zeros(2, 9, WIDTH)
        values[:, :TOKENS] = m.c(x)
        return x + m.d(F.scaled_dot_product_attention(m.a(x), keys, values))

    assert roles(compute, "abcd") == ATTENTION


def test_gated_attention_output() -> None:
    def compute(m: Graph, x: torch.Tensor) -> torch.Tensor:
        return x + m.d(attend(m.a(x), m.b(x), m.c(x)) * torch.sigmoid(m.e(x)))

    assert roles(compute, "abcde") == ATTENTION + " other"


def test_output_after_a_residual_is_not_attention_output() -> None:
    def compute(m: Graph, x: torch.Tensor) -> torch.Tensor:
        return x + m.d(x + attend(m.a(x), m.b(x), m.c(x)))

    assert roles(compute, "abcd") == "q k v other"


def test_attention_straight_on_a_stream_names_no_earlier_layer() -> None:
    def compute(m: Graph, x: torch.Tensor) -> torch.Tensor:
        stream = x + m.a(x)
        return stream + m.b(attend(stream, stream, stream))

    assert roles(compute, "ab") == "other attn_out"


@pytest.mark.parametrize(
    "activation",
    [
        F.relu,
        F.gelu,
        F.silu,
        torch.tanh,
        F.leaky_relu,
        F.hardswish,
        F.mish,
        lambda x: F.gelu(x, approximate="tanh"),
        lambda x: x * torch.sigmoid(1.702 * x),
        lambda x: F.relu(x) ** 2,
        lambda x: 0.5 * x * (1 + torch.erf(x / math.sqrt(2))),
        lambda x: 0.5 * x * (1 + torch.tanh(0.8 * (x + 0.04 * torch.pow(x, 3)))),
        lambda x: F.dropout(F.relu_(x.clone()), 0.1),
        lambda x: F.layer_norm(F.gelu(x), (x.shape[-1],)),
        lambda x: F.glu(torch.cat([x, x], dim=-1)),
    ],
)
def test_an_activation_between_two_projections(activation: Callable) -> None:
    def compute(m: Graph, x: torch.Tensor) -> torch.Tensor:
        return x + m.b(activation(m.a(x)))

    assert roles(compute, "ab", a=(16, WIDTH), b=(WIDTH, 16)) == "mlp_in mlp_out"


@pytest.mark.parametrize("gate_first", [True, False])
def test_gated_feed_forward(gate_first: bool) -> None:
    def compute(m: Graph, x: torch.Tensor) -> torch.Tensor:
        factors = (F.silu(m.a(x)), m.b(x))
        product = factors[0] * factors[1] if gate_first else factors[1] * factors[0]
        return x + m.c(F.dropout(product, 0.0))

    assert roles(compute, "abc") == "mlp_gate mlp_in mlp_out"


def test_a_further_factor_is_no_gate() -> None:
    def compute(m: Graph, x: torch.Tensor) -> torch.Tensor:
        return x + m.d(F.silu(m.a(x)) * m.b(x) * m.c(x))

    assert roles(compute, "abcd") == "mlp_gate mlp_in other mlp_out"


def test_gate_written_out() -> None:
    def compute(m: Graph, x: torch.Tensor) -> torch.Tensor:
        gate = m.b(x)
        return x + m.c(m.a(x) * (gate * torch.sigmoid(gate)))

    assert roles(compute, "abc") == "mlp_in mlp_gate mlp_out"


def test_gate_and_input_in_one_projection() -> None:
    def compute(m: Graph, x: torch.Tensor) -> torch.Tensor:
        gate, up = m.a(x).chunk(2, dim=-1)
        return x + m.b(F.silu(gate) * up)

    assert roles(compute, "ab", a=(16, WIDTH)) == "mlp_in mlp_out"


def test_parallel_block_with_one_output_projection() -> None:
    def compute(m: Graph, x: torch.Tensor) -> torch.Tensor:
        both = torch.cat([attend(m.a(x), m.b(x), m.c(x)), F.gelu(m.d(x))], dim=-1)
        return x + m.e(both)

    assert roles(compute, "abcde", e=(WIDTH, 16)) == "q k v mlp_in attn_out"


def test_an_activated_sum_with_the_stream_is_no_feed_forward() -> None:
    def compute(m: Graph, x: torch.Tensor) -> torch.Tensor:
        return x + m.b(x + F.relu(m.a(x)))

    assert roles(compute, "ab") == "other other"


def test_a_modulation_of_the_stream_is_other() -> None:
    def compute(m: Graph, x: torch.Tensor) -> torch.Tensor:
        scale, shift = m.a(F.silu(x)).chunk(2, dim=-1)
        return x + m.c(F.relu(m.b(x * (1 + scale) + shift)))

    assert roles(compute, "abc", a=(16, WIDTH)) == "other mlp_in mlp_out"


@pytest.mark.parametrize(
    "end",
    [
        lambda m, y: y,
        lambda m, y: y[:, 0],
        lambda m, y: y.float() + m.scale,
        lambda m, y: (y.log_softmax(-1),),
        lambda m, y: {"logits": y.transpose(1, 2), "hidden": m.table},
        lambda m, y: [y[..., :3], y[..., 3:]],
        lambda m, y: 30 * torch.tanh(y / 30),
        lambda m, y: F.normalize(y, dim=-1),
    ],
)
def test_the_output_of_the_model_is_a_head(end: Callable) -> None:
    def compute(m: Graph, x: torch.Tensor) -> object:
        x = x + m.b(F.relu(m.a(x)))
        return end(m, m.c(x))

    assert roles(compute, "abc") == "mlp_in mlp_out head"


@pytest.mark.parametrize(
    "end",
    [
        lambda m, x, y: x + y,
        lambda m, x, y: y * x,
        lambda m, x, y: torch.tanh(y),
        lambda m, x, y: torch.cat([x, y], dim=1),
    ],
)
def test_an_output_with_something_else_in_it_is_no_head(end: Callable) -> None:
    assert roles(lambda m, x: end(m, x, m.a(x)), "a") == "other"


def test_a_layer_that_only_feeds_a_head_is_its_transform() -> None:
    assert roles(lambda m, x: m.b(torch.tanh(m.a(x[:, 0]))), "ab") == "other head"


def test_a_chain_of_layers() -> None:
    def compute(m: Graph, x: torch.Tensor) -> torch.Tensor:
        return m.d(F.relu(m.c(F.relu(m.b(F.relu(m.a(x)))))))

    assert roles(compute, "abcd") == "mlp_in mlp_in mlp_out head"


def test_keys_that_are_also_returned_are_keys() -> None:
    def compute(m: Graph, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        key, value = m.b(x), m.c(x)
        return x + m.d(attend(m.a(x), key, value)), key, value

    assert roles(compute, "abcd") == ATTENTION


def test_a_projection_used_twice_keeps_what_both_uses_say() -> None:
    def compute(m: Graph, x: torch.Tensor) -> torch.Tensor:
        for _ in range(2):
            x = x + m.b(F.relu(m.a(x)))
        return x

    assert roles(compute, "ab") == "mlp_in mlp_out"


def test_layers_that_feed_each_other_in_turn() -> None:
    def compute(m: Graph, x: torch.Tensor) -> torch.Tensor:
        for _ in range(2):
            x = F.relu(m.b(F.relu(m.a(x))))
        return x + 1

    assert roles(compute, "ab") == "mlp_in mlp_in"


@pytest.mark.parametrize("enabled", [True, False])
def test_inside_an_autocast_region(enabled: bool) -> None:
    def compute(m: Graph, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            y = m.d(attend(m.a(x), m.b(x), m.c(x)))
        return x + y.float()

    assert roles(compute, "abcd") == ATTENTION


def test_inside_a_region_with_gradients() -> None:
    def compute(m: Graph, x: torch.Tensor) -> torch.Tensor:
        with torch.enable_grad():
            hidden = F.gelu(m.a(x))
        return x + m.b(hidden)

    assert roles(compute, "ab") == "mlp_in mlp_out"


def test_inside_a_branch() -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = (nn.Linear(WIDTH, WIDTH) for _ in range(3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = torch.cond(x.sum() > 0, lambda y: F.relu(self.a(y)), lambda y: self.b(y), (x,))
            return x + self.c(y)

    projections = find_projections(Branches(), torch.rand(2, WIDTH))
    assert [p.role for p in projections] == ["mlp_in", "other", "mlp_out"]


def test_products_with_constants_change_no_role() -> None:
    def compute(m: Graph, x: torch.Tensor) -> torch.Tensor:
        mixing = m.table.T @ m.table
        return x + m.b(F.relu(m.a(x) @ mixing))

    assert roles(compute, "ab") == "mlp_in mlp_out"


def test_an_unknown_operator_ends_the_trail() -> None:
    def compute(m: Graph, x: torch.Tensor) -> torch.Tensor:
        return torch.fft.fft(m.a(x)).real

    assert roles(compute, "a") == "other"
