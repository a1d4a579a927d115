"""On real models the tree and the graph name the same projections and the roles written here."""

from __future__ import annotations

from collections.abc import Callable

import model_zoo
import pytest
import torch
from torch import nn

from padst_fx.projections import Projection, find_projections

Expected = list[tuple[str, str]]


def named(prefix: str, **roles: str) -> Expected:
    """`named("a.", b__c="q")` is [("a.b.c", "q")]."""
    return [(prefix + name.replace("__", "."), role) for name, role in roles.items()]


def repeated(count: int, block: Callable[[int], Expected]) -> Expected:
    return [pair for index in range(count) for pair in block(index)]


def attention_of_torch(prefix: str) -> Expected:
    return named(prefix, q_proj="q", k_proj="k", v_proj="v", out_proj="attn_out")


def vit() -> Expected:
    return [
        *repeated(2, lambda i: vit_layer(f"vit.layers.{i}.")),
        ("classifier", "head"),
    ]


def vit_layer(prefix: str) -> Expected:
    return [
        *named(prefix + "attention.", q_proj="q", k_proj="k", v_proj="v", o_proj="attn_out"),
        *named(prefix + "mlp.", fc1="mlp_in", fc2="mlp_out"),
    ]


def gpt2() -> Expected:
    def block(i: int) -> Expected:
        prefix = f"transformer.h.{i}."
        return [
            *named(prefix + "attn.", c_attn="qkv", c_proj="attn_out"),
            *named(prefix + "mlp.", c_fc="mlp_in", c_proj="mlp_out"),
        ]

    return [*repeated(2, block), ("lm_head", "head")]


def bert_layers(model: str) -> Expected:
    def layer(i: int) -> Expected:
        prefix = f"{model}encoder.layer.{i}."
        return [
            *named(prefix + "attention.self.", query="q", key="k", value="v"),
            *named(prefix, attention__output__dense="attn_out"),
            *named(prefix, intermediate__dense="mlp_in", output__dense="mlp_out"),
        ]

    return repeated(2, layer)


def llama() -> Expected:
    def layer(i: int) -> Expected:
        prefix = f"model.layers.{i}."
        return [
            *named(prefix + "self_attn.", q_proj="q", k_proj="k", v_proj="v", o_proj="attn_out"),
            *named(prefix + "mlp.", gate_proj="mlp_gate", up_proj="mlp_in", down_proj="mlp_out"),
        ]

    return [*repeated(2, layer), ("lm_head", "head")]


def t5(feed_forward: dict[str, str]) -> Expected:
    def encoder(i: int) -> Expected:
        prefix = f"encoder.block.{i}.layer."
        return [
            *named(prefix + "0.SelfAttention.", q="q", k="k", v="v", o="attn_out"),
            *named(prefix + "1.DenseReluDense.", **feed_forward),
        ]

    def decoder(i: int) -> Expected:
        prefix = f"decoder.block.{i}.layer."
        return [
            *named(prefix + "0.SelfAttention.", q="q", k="k", v="v", o="attn_out"),
            *named(prefix + "1.EncDecAttention.", q="q", k="k", v="v", o="attn_out"),
            *named(prefix + "2.DenseReluDense.", **feed_forward),
        ]

    return [*repeated(2, encoder), *repeated(2, decoder), ("lm_head", "head")]


def bart() -> Expected:
    attention = {"k_proj": "k", "v_proj": "v", "q_proj": "q", "out_proj": "attn_out"}
    feed_forward = {"fc1": "mlp_in", "fc2": "mlp_out"}

    def encoder(i: int) -> Expected:
        prefix = f"model.encoder.layers.{i}."
        return [*named(prefix + "self_attn.", **attention), *named(prefix, **feed_forward)]

    def decoder(i: int) -> Expected:
        prefix = f"model.decoder.layers.{i}."
        return [
            *named(prefix + "self_attn.", **attention),
            *named(prefix + "encoder_attn.", **attention),
            *named(prefix, **feed_forward),
        ]

    return [*repeated(2, encoder), *repeated(2, decoder), ("lm_head", "head")]


def torch_encoder() -> Expected:
    def layer(i: int) -> Expected:
        prefix = f"encoder.layers.{i}."
        return [
            *attention_of_torch(prefix + "self_attn."),
            *named(prefix, linear1="mlp_in", linear2="mlp_out"),
        ]

    return [*repeated(2, layer), ("classifier", "head")]


def mixer() -> Expected:
    def block(i: int) -> Expected:
        pair = {"0": "mlp_in", "2": "mlp_out"}
        return [
            *named(f"blocks.{i}.token_mlp.", **pair),
            *named(f"blocks.{i}.channel_mlp.", **pair),
        ]

    return [*repeated(2, block), ("head", "head")]


EXPECTED: dict[str, Expected] = {
    "vit": vit(),
    "gpt2": gpt2(),
    "bert": [*bert_layers(""), ("pooler.dense", "other")],
    "bert_classifier": [
        *bert_layers("bert."),
        ("bert.pooler.dense", "other"),
        ("classifier", "head"),
    ],
    "bert_masked_lm": [
        *bert_layers("bert."),
        ("cls.predictions.transform.dense", "other"),
        ("cls.predictions.decoder", "head"),
    ],
    "llama": llama(),
    "t5": t5({"wi": "mlp_in", "wo": "mlp_out"}),
    "t5_gated": t5({"wi_0": "mlp_gate", "wi_1": "mlp_in", "wo": "mlp_out"}),
    "bart": bart(),
    "torch_encoder": torch_encoder(),
    "multihead_attention": [
        *attention_of_torch("attend_self."),
        *attention_of_torch("attend_other."),
        ("classifier", "head"),
    ],
    "mixer": mixer(),
    "mlp": [("0", "mlp_in"), ("2", "mlp_out"), ("4", "head")],
}

TIED = {
    "gpt2": {"lm_head": "transformer.wte.weight"},
    "bert_masked_lm": {"cls.predictions.decoder": "bert.embeddings.word_embeddings.weight"},
    "t5": {"lm_head": "shared.weight"},
    "t5_gated": {"lm_head": "shared.weight"},
    "bart": {"lm_head": "model.shared.weight"},
}

every_model = pytest.mark.parametrize("entry", model_zoo.list(), ids=str)


def roles(projections: list[Projection]) -> Expected:
    return [(projection.name, projection.role) for projection in projections]


def stored_shape(model: nn.Module, projection: Projection) -> tuple[int, ...]:
    """The projection's [out, in], read from the parameter that holds it."""
    owner = model.get_submodule(projection.owner)
    if projection.kind == "linear":
        return tuple(owner.weight.shape)
    if projection.kind == "conv1d":
        return tuple(owner.weight.T.shape)
    slot = projection.name.rpartition(".")[2]
    if slot == "out_proj":
        return tuple(owner.out_proj.weight.shape)
    if owner.in_proj_weight is not None:
        return tuple(owner.in_proj_weight.chunk(3)[0].shape)
    return tuple(getattr(owner, f"{slot}_weight").shape)


@every_model
def test_every_model_has_expected_roles_written_down(entry: model_zoo.Entry) -> None:
    assert entry.name in EXPECTED


@every_model
def test_tree_and_graph_agree_with_the_expected_projections(entry: model_zoo.Entry) -> None:
    model = entry.build()
    from_tree = find_projections(model)
    assert roles(from_tree) == EXPECTED[entry.name]
    assert find_projections(model, entry.inputs()) == from_tree
    tied = {p.name: p.tied_with for p in from_tree if p.tied_with is not None}
    assert tied == TIED.get(entry.name, {})
    for projection in from_tree:
        assert projection.unsupported is None
        assert projection.shape == stored_shape(model, projection)


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("gpt2", {"conv1d", "linear"}),
        ("torch_encoder", {"attention", "linear"}),
        ("llama", {"linear"}),
    ],
)
def test_kind_follows_the_class_of_the_owner(name: str, kinds: set[str]) -> None:
    model = model_zoo.get(name).build()
    classes = {"linear": "Linear", "conv1d": "Conv1D", "attention": "MultiheadAttention"}
    projections = find_projections(model)
    assert {projection.kind for projection in projections} == kinds
    for projection in projections:
        owner = model.get_submodule(projection.owner)
        assert type(owner).__name__ == classes[projection.kind]


@pytest.mark.parametrize("make", [model_zoo.gpt2, model_zoo.llama, model_zoo.bert_masked_lm])
def test_attention_written_out_gives_the_same_as_the_fused_operator(make: Callable) -> None:
    inputs = model_zoo.causal_inputs()
    fused, written_out = make(attention="sdpa").eval(), make(attention="eager").eval()
    assert find_projections(written_out, inputs) == find_projections(fused, inputs)


def test_a_model_that_returns_a_cache_is_exported() -> None:
    model = model_zoo.get("llama").build()
    model.config.use_cache = True
    assert roles(find_projections(model, model_zoo.causal_inputs())) == EXPECTED["llama"]


@pytest.mark.parametrize("name", ["gpt2", "torch_encoder", "multihead_attention"])
def test_a_model_in_training_mode_gives_the_same(name: str) -> None:
    entry = model_zoo.get(name)
    model = entry.build()
    expected = find_projections(model, entry.inputs())
    assert find_projections(model.train(), entry.inputs()) == expected


def rename(model: nn.Module) -> None:
    """Gives every submodule a meaningless name that its parent still finds under the old one."""
    containers = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
    for module in list(model.modules()):
        if isinstance(module, containers) or not module._modules:
            continue
        names = {name: f"part{place}" for place, name in enumerate(module._modules)}
        children = [(names[name], child) for name, child in module._modules.items()]
        module._modules.clear()
        module._modules.update(children)
        module.__class__ = with_old_names(type(module), names)


def with_old_names(base: type[nn.Module], names: dict[str, str]) -> type[nn.Module]:
    class Renamed(base):  # type: ignore[misc, valid-type]
        def __getattr__(self, name: str) -> object:
            return super().__getattr__(names.get(name, name))

    return Renamed


@every_model
def test_meaningless_module_names_leave_the_graphs_roles(entry: model_zoo.Entry) -> None:
    model, renamed = entry.build(), entry.build()
    rename(renamed)
    torch.testing.assert_close(entry.run(renamed), entry.run(model), rtol=0, atol=0)
    projections = find_projections(renamed, entry.inputs())
    assert [p.role for p in projections] == [role for _, role in EXPECTED[entry.name]]
    names = [name for name, _ in EXPECTED[entry.name]]
    kept = [p.name for p in projections if p.name in names]
    assert kept == (names if entry.name == "mlp" else [])
