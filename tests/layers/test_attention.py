"""The attention drop-in against nn.MultiheadAttention, call by call."""

from __future__ import annotations

import copy
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
@pytest.mark.parametrize(("need_weights", "average"), [(True, True), (True, False), (False, True)])
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


@pytest.mark.parametrize("average", [True, False])
def test_the_weights_returned_in_training_are_those_used(average):
    mha = make(dropout=0.5, batch_first=True).train()
    drop_in = MultiheadAttention.from_dense(mha)
    q, k, v = inputs(mha)
    torch.manual_seed(3)
    expected = mha(q, k, v, average_attn_weights=average)
    torch.manual_seed(3)
    assert_same(drop_in(q, k, v, average_attn_weights=average), expected)
    assert average or (expected[1] == 0).any()


def both_refuse(mha, call, message=None, **keywords):
    """The error of nn.MultiheadAttention and the drop-in's, which must be of its type."""
    with pytest.raises((AssertionError, RuntimeError)) as theirs:
        mha(*call, **keywords)
    with pytest.raises(theirs.type, match=message):
        MultiheadAttention.from_dense(mha)(*call, **keywords)


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8])
@pytest.mark.parametrize(("name", "shape"), [("attn_mask", (5, 7)), ("key_padding_mask", (3, 7))])
def test_integer_masks_are_refused(dtype, name, shape):
    mha = make(batch_first=True)
    message = f"only bool and floating types of {name} are supported"
    with pytest.raises(AssertionError, match=message):
        mha(*inputs(mha), **{name: torch.zeros(shape, dtype=dtype)})
    both_refuse(mha, inputs(mha), message, **{name: torch.zeros(shape, dtype=dtype)})


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ((1, 2, 2), "query has batch size 1, but key and value 2"),
        ((2, 1, 1), "query has batch size 2, but key and value 1"),
        ((2, 2, 1), "key's batch and sequence dims"),
    ],
)
def test_batches_that_differ_are_refused(batches, message, batch_first):
    mha = make(batch_first=batch_first)
    call = [inputs(mha, keys=5, batch=batch)[0] for batch in batches]
    both_refuse(mha, call, message)


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("attn_mask", (7, 5), r"The shape of the 2D attn_mask is .*but should be \(5, 7\)"),
        ("attn_mask", (3, 5, 7), r"The shape of the 3D attn_mask is .*should be \(12, 5, 7\)"),
        ("attn_mask", (7,), "attn_mask must be 2-D or 3-D, got 1-D"),
        ("key_padding_mask", (7,), "key_padding_mask must be 2-D, got 1-D"),
        ("key_padding_mask", (7, 3), r"expecting .* of \(3, 7\), but got \(7, 3\)"),
    ],
)
def test_masks_of_another_shape_are_refused(name, shape, message):
    mha = make(batch_first=True)
    both_refuse(mha, inputs(mha), message, **{name: torch.zeros(shape, dtype=torch.bool)})


def test_batched_queries_need_batched_keys():
    mha = make()
    query, _, _ = inputs(mha)
    _, key, value = inputs(mha, batch=None)
    both_refuse(mha, (query, key, value), "for a 3-D query, key must be 3-D, got 2-D")
    both_refuse(mha, (query[None], key, value), "query must be 2-D")


def test_the_attributes_other_code_reads_are_there():
    mha = make()
    drop_in = MultiheadAttention.from_dense(mha)
    public = {name for name in (*vars(mha), *mha._parameters) if not name.startswith("_")}
    assert all(hasattr(drop_in, name) for name in public)
    for name in ("in_proj", "q_proj", "k_proj", "v_proj"):
        assert getattr(drop_in, f"{name}_weight") is None


@pytest.mark.parametrize("settings", [{}, {"kdim": 10, "vdim": 6}], ids=str)
@pytest.mark.parametrize("frozen", ["weight", "bias"])
def test_each_flag_comes_from_its_own_tensor(frozen, settings):
    mha = make(**settings)
    for name, parameter in mha.named_parameters():
        parameter.requires_grad_(not name.endswith(frozen))
    flags = {name: parameter.requires_grad for name, parameter in mha.named_parameters()}
    drop_in = MultiheadAttention.from_dense(mha)
    for name, parameter in drop_in.named_parameters():
        assert parameter.requires_grad is not name.endswith(frozen), name
    back = drop_in.to_dense()
    assert {n: p.requires_grad for n, p in back.named_parameters()} == flags


def test_a_packed_tensor_is_trainable_if_any_part_is():
    drop_in = MultiheadAttention.from_dense(make())
    drop_in.requires_grad_(False)
    drop_in.k_proj.weight.requires_grad_(True)
    drop_in.v_proj.bias.requires_grad_(True)
    back = drop_in.to_dense()
    assert back.in_proj_weight.requires_grad and back.in_proj_bias.requires_grad
    assert not back.out_proj.weight.requires_grad and not back.out_proj.bias.requires_grad


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
    assert type(attention.q_proj) is type(attention.k_proj) is nn.Linear
    assert isinstance(attention.out_proj, nn.Linear)


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


@pytest.mark.parametrize("name", ["linear1", "linear2", "self_attn.out_proj"])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_the_fused_path_does_not_read_a_hand_built_layer(name, mode):
    """Its stored values have the dense weight's shape here, so reading them would go unnoticed."""
    torch.manual_seed(0)
    encoder = nn.TransformerEncoderLayer(EMBED, HEADS, 32, batch_first=True).eval()
    dense = encoder.get_submodule(name)
    sparse = padst_fx.SparseLinear.from_dense(dense, "unstructured", 0.8, permutation="random")
    reference = copy.deepcopy(encoder)
    reference.set_submodule(name, sparse.to_dense())
    encoder.set_submodule(name, sparse)
    x = torch.randn(2, 5, EMBED)
    with mode():
        if name == "self_attn.out_proj":
            with pytest.raises(TypeError, match="stored values"):
                encoder(x)
        else:
            torch.testing.assert_close(encoder(x), reference(x), rtol=1e-4, atol=1e-5)


def test_nested_tensors_are_not_made_for_a_hand_built_layer():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(EMBED, HEADS, 32, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 2).eval()
    reference = copy.deepcopy(encoder)
    for block, dense in zip(encoder.layers, reference.layers, strict=True):
        sparse = padst_fx.SparseLinear.from_dense(
            block.linear1, "unstructured", 0.8, permutation="random"
        )
        block.linear1, dense.linear1 = sparse, sparse.to_dense()
    x = torch.randn(2, 5, EMBED)
    padding = torch.zeros(2, 5, dtype=torch.bool)
    padding[0, -1] = True
    with torch.no_grad():
        actual = encoder(x, src_key_padding_mask=padding)
        expected = reference(x, src_key_padding_mask=padding)
    torch.testing.assert_close(actual[~padding], expected[~padding], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_code_that_casts_to_the_dtype_of_weight_compiles(dtype):
    """As T5's feed-forward does."""

    class Casts(nn.Module):
        def __init__(self):
            super().__init__()
            self.wo = padst_fx.SparseLinear(16, 16, "diag", 0.5, dtype=dtype)

        def forward(self, x):
            if isinstance(self.wo.weight, torch.Tensor) and x.dtype != self.wo.weight.dtype:
                x = x.to(self.wo.weight.dtype)
            return self.wo(x)

    model = Casts()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    x = torch.randn(3, 16)
    assert compiled(x).dtype == dtype
    torch.testing.assert_close(compiled(x), model(x))
    assert model.wo.weight.shape == model.wo.values.shape
    assert model.wo.weight.device == model.wo.values.device
