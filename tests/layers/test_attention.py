"""The attention drop-in against nn.MultiheadAttention, call by call."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

import padst_fx
from padst_fx.layers.attention import MultiheadAttention

EMBED, HEADS = 16, 4


def make(**settings) -> nn.MultiheadAttention:
    torch.manual_seed(0)
    mha = nn.MultiheadAttention(EMBED, HEADS, dtype=torch.float64, **settings).eval()
    with torch.no_grad():
        for parameter in mha.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return mha


def inputs(mha, *, queries=5, keys=7, batch=3):
    def draw(length, features):
        shape = (length, features) if batch is None else (batch, length, features)
        tensor = torch.randn(shape, dtype=torch.float64)
        return tensor if mha.batch_first or batch is None else tensor.transpose(0, 1)

    return draw(queries, EMBED), draw(keys, mha.kdim), draw(keys, mha.vdim)


def masks(batch, queries, keys, kind):
    causal = torch.ones(queries, keys, dtype=torch.bool).triu(1)
    padding = torch.zeros(batch, keys, dtype=torch.bool)
    padding[-1, -2:] = True
    floating = torch.randn(batch * HEADS, queries, keys, dtype=torch.float64)
    return {
        "none": {},
        "causal": {"attn_mask": causal},
        "causal hint": {"attn_mask": causal, "is_causal": True},
        "padding": {"key_padding_mask": padding},
        "both": {"attn_mask": causal, "key_padding_mask": padding},
        "per head": {"attn_mask": floating},
    }[kind]


def assert_same(actual, expected):
    torch.testing.assert_close(actual[0], expected[0])
    assert (actual[1] is None) == (expected[1] is None)
    if expected[1] is not None:
        torch.testing.assert_close(actual[1], expected[1])


@pytest.mark.parametrize("kind", ["none", "causal", "causal hint", "padding", "both", "per head"])
@pytest.mark.parametrize(
    ("need_weights", "average"), [(True, True), (True, False), (False, True)]
)
@pytest.mark.parametrize("batch_first", [True, False])
def test_masks_and_weights(kind, need_weights, average, batch_first):
    mha = make(batch_first=batch_first)
    drop_in = MultiheadAttention.from_dense(mha)
    q, k, v = inputs(mha)
    call = {
        "need_weights": need_weights,
        "average_attn_weights": average,
        **masks(3, 5, 7, kind),
    }
    assert_same(drop_in(q, k, v, **call), mha(q, k, v, **call))


SETTINGS = [
    {"bias": False},
    {"add_bias_kv": True},
    {"add_zero_attn": True},
    {"add_bias_kv": True, "add_zero_attn": True},
    {"kdim": 10, "vdim": 6},
    {"kdim": 10, "vdim": 6, "add_bias_kv": True, "bias": False},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize(("need_weights", "kind"), [(True, "both"), (False, "padding")])
def test_settings_and_the_way_back(settings, need_weights, kind):
    mha = make(batch_first=True, **settings)
    drop_in = MultiheadAttention.from_dense(mha)
    q, k, v = inputs(mha)
    call = {"need_weights": need_weights, **masks(3, 5, 7, kind)}
    expected = mha(q, k, v, **call)
    assert_same(drop_in(q, k, v, **call), expected)
    back = drop_in.to_dense()
    assert type(back) is nn.MultiheadAttention
    assert back.state_dict().keys() == mha.state_dict().keys()
    assert_same(back(q, k, v, **call), expected)


@pytest.mark.parametrize("need_weights", [True, False])
def test_unbatched(need_weights):
    mha = make()
    drop_in = MultiheadAttention.from_dense(mha)
    q, k, v = inputs(mha, batch=None)
    padding = torch.zeros(7, dtype=torch.bool)
    padding[-1] = True
    for call in ({}, {"key_padding_mask": padding}):
        call["need_weights"] = need_weights
        assert_same(drop_in(q, k, v, **call), mha(q, k, v, **call))


def test_the_causal_hint_needs_a_mask():
    drop_in = MultiheadAttention.from_dense(make())
    q, k, v = inputs(make())
    with pytest.raises(RuntimeError, match="Need attn_mask"):
        drop_in(q, k, v, is_causal=True)


def test_dropout_is_active_only_in_training():
    drop_in = MultiheadAttention.from_dense(make(dropout=0.5, batch_first=True))
    q, k, v = inputs(drop_in)
    for need_weights in (True, False):
        calls = [drop_in(q, k, v, need_weights=need_weights)[0] for _ in range(2)]
        assert torch.equal(*calls)
        drop_in.train()
        calls = [drop_in(q, k, v, need_weights=need_weights)[0] for _ in range(2)]
        assert not torch.equal(*calls)
        drop_in.eval()


@pytest.mark.parametrize(
    ("structure", "permutation"),
    list(itertools.product(["diag", padst_fx.Block(4), "2:4"], ["identity", "random"])),
)
def test_sparse_attention_equals_its_dense_form(structure, permutation):
    torch.manual_seed(0)
    model = nn.ModuleDict({"attention": make(batch_first=True, add_bias_kv=True)})
    sparsity = 0.5
    padst_fx.sparsify(model, structure, sparsity, permutation=permutation)
    q, k, v = inputs(model["attention"])
    call = masks(3, 5, 7, "both")
    expected = model["attention"](q, k, v, **call)
    padst_fx.densify(model)
    assert type(model["attention"]) is nn.MultiheadAttention
    assert_same(model["attention"](q, k, v, **call), expected)


def test_one_projection_alone_can_be_sparse():
    model = nn.ModuleDict({"attention": make()})
    padst_fx.sparsify(model, "diag", 0.75, include="attention.v_proj")
    attention = model["attention"]
    assert isinstance(attention.v_proj, padst_fx.SparseLinear)
    assert type(attention.q_proj) is type(attention.out_proj) is nn.Linear


@pytest.mark.parametrize("exclude", [None, "*self_attn*", "*linear*"])
@pytest.mark.parametrize("need_grad", [True, False])
def test_transformer_encoder_in_eval_mode(need_grad, exclude):
    """Its fused path reads dense weights: barred while a layer is sparse, given back after."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(EMBED, HEADS, 32, batch_first=True, dropout=0.0)
    encoder = nn.TransformerEncoder(layer, 2).eval()
    padst_fx.sparsify(encoder, "diag", 0.5, init="random", exclude=exclude)
    x = torch.randn(2, 5, EMBED)
    padding = torch.zeros(2, 5, dtype=torch.bool)
    padding[0, -1] = True
    with torch.set_grad_enabled(need_grad):
        sparse = encoder(x, src_key_padding_mask=padding)
        assert not encoder.use_nested_tensor
        padst_fx.densify(encoder)
        dense = encoder(x, src_key_padding_mask=padding)
    assert encoder.use_nested_tensor and encoder.layers[0].activation_relu_or_gelu == 1
    seen = ~padding
    torch.testing.assert_close(sparse[seen], dense[seen], rtol=1e-4, atol=1e-5)
