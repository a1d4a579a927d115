"""Roles from names and from the structure of the tree."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn

from padst_fx.projections import ROLES, Projection, find_projections
from padst_fx.projections.tree import NAME_RULES


class Leaf(nn.Module):
    """An empty module to hang others under."""


def tree(*names: str) -> nn.Module:
    """A model with one nn.Linear at each dotted name, and a last one that is called `norm_scale`
    and stands in a list, so that no rule but the names' can apply to the others."""
    root = Leaf()
    for name in names:
        parent: nn.Module = root
        *path, last = name.split(".")
        for part in path:
            if part not in parent._modules:
                parent.add_module(part, Leaf())
            parent = parent._modules[part]  # type: ignore[assignment]
        parent.add_module(last, nn.Linear(4, 4))
    root.add_module("zz", nn.ModuleList([nn.Linear(4, 4)]))
    return root


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("layers.0.self_attn.q_proj", "q"),
        ("encoder.layer.0.attention.self.query", "q"),
        ("block.0.SelfAttention.q", "q"),
        ("transformer.layer.0.attention.q_lin", "q"),
        ("h.0.crossattention.q_attn", "q"),
        ("layers.0.attention.wk", "k"),
        ("encoder.layer.0.attention.self.key", "k"),
        ("block.0.EncDecAttention.v", "v"),
        ("blocks.0.attn1.to_v", "v"),
        ("h.0.attn.c_attn", "qkv"),
        ("blocks.0.attn.qkv", "qkv"),
        ("h.0.self_attention.query_key_value", "qkv"),
        ("layers.0.attn.Wqkv", "qkv"),
        ("layers.0.attention.in_proj", "qkv"),
        ("layers.0.mixer.in_proj", "other"),
        ("layers.0.self_attn.o_proj", "attn_out"),
        ("encoder.layer.0.attention.output.dense", "attn_out"),
        ("h.0.attn.c_proj", "attn_out"),
        ("h.0.mlp.c_proj", "mlp_out"),
        ("block.0.SelfAttention.o", "attn_out"),
        ("blocks.0.attn.proj", "attn_out"),
        ("h.0.self_attention.dense", "attn_out"),
        ("layers.0.attn.Wo", "attn_out"),
        ("layers.0.mlp.Wo", "mlp_out"),
        ("encoder.layer.0.intermediate.dense", "mlp_in"),
        ("encoder.layer.0.output.dense", "mlp_out"),
        ("layers.0.mlp.gate_proj", "mlp_gate"),
        ("layers.0.mlp.up_proj", "mlp_in"),
        ("layers.0.mlp.gate_up_proj", "mlp_in"),
        ("layers.0.mlp.down_proj", "mlp_out"),
        ("block.0.DenseReluDense.wi", "mlp_in"),
        ("block.0.DenseReluDense.wi_0", "mlp_gate"),
        ("block.0.DenseReluDense.wi_1", "mlp_in"),
        ("block.0.DenseReluDense.wo", "mlp_out"),
        ("blocks.0.mlp.fc1", "mlp_in"),
        ("blocks.0.mlp.fc2", "mlp_out"),
        ("layers.0.feed_forward.w1", "mlp_gate"),
        ("layers.0.feed_forward.w2", "mlp_out"),
        ("layers.0.feed_forward.w3", "mlp_in"),
        ("h.0.mlp.dense_h_to_4h", "mlp_in"),
        ("h.0.mlp.dense_4h_to_h", "mlp_out"),
        ("lm_head", "head"),
        ("heads.head", "head"),
        ("score", "head"),
        ("qa_outputs", "head"),
        ("cls.predictions.decoder", "head"),
        ("cls.predictions.transform.dense", "other"),
        ("classifier", "head"),
        ("classifier.dense", "other"),
        ("classifier.out_proj", "head"),
        ("bert.pooler.dense", "other"),
        ("layers.0.ahead", "other"),
        ("layers.0.prequery", "other"),
        ("attention_model.h.0.mlp.extra.proj", "other"),
        ("anything", "other"),
    ],
)
def test_the_name_gives_the_role(name: str, role: str) -> None:
    projections = find_projections(tree(name))
    assert [(p.name, p.role) for p in projections] == [(name, role), ("zz.0", "other")]


def test_every_rule_gives_one_of_the_roles() -> None:
    assert {role for _, role in NAME_RULES} == set(ROLES)


def linear() -> nn.Linear:
    return nn.Linear(4, 4)


class Block(nn.Module):
    def __init__(self, *modules: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(*modules)


def roles(model: nn.Module) -> list[str]:
    return [projection.role for projection in find_projections(model)]


@pytest.mark.parametrize(
    ("modules", "expected"),
    [
        ([linear(), nn.ReLU(), linear()], ["other", "head"]),
        ([linear(), nn.ReLU(), linear(), nn.Tanh()], ["mlp_in", "mlp_out"]),
        ([linear(), linear()], ["other", "head"]),
        (
            [linear(), nn.GELU(), nn.Dropout(0.1), nn.LayerNorm(4), linear(), nn.GELU(), linear()],
            ["mlp_in", "mlp_out", "head"],
        ),
        (
            [linear(), nn.ReLU(), linear(), nn.ReLU(), linear(), nn.ReLU(), linear()],
            ["mlp_in", "mlp_in", "mlp_out", "head"],
        ),
        (
            [nn.Sequential(linear(), nn.ReLU()), nn.Sequential(linear(), nn.ReLU()), linear()],
            ["mlp_in", "mlp_out", "head"],
        ),
        (
            [linear(), nn.Softmax(-1), linear(), nn.Conv1d(4, 4, 1), linear()],
            ["other"] * 2 + ["head"],
        ),
    ],
)
def test_a_sequential_model(modules: list[nn.Module], expected: list[str]) -> None:
    assert roles(nn.Sequential(*modules)) == expected


def test_repeated_blocks_have_no_head() -> None:
    blocks = [Block(linear(), nn.ReLU(), linear()) for _ in range(2)]
    assert roles(nn.Sequential(*blocks)) == ["mlp_in", "mlp_out"] * 2
    assert roles(nn.Sequential(*blocks, nn.LayerNorm(4), linear()))[-2:] == ["mlp_out", "head"]


def test_a_list_has_no_head() -> None:
    model = Leaf()
    model.items = nn.ModuleList([linear(), linear()])
    assert roles(model) == ["other", "other"]


def test_a_module_under_two_names_is_one_projection() -> None:
    model = Leaf()
    model.first = linear()
    model.second = model.first
    model.holder = nn.ModuleList([model.first])
    projections = find_projections(model)
    assert [(p.name, p.tied_with) for p in projections] == [("first", None)]


def test_order_is_that_of_registration() -> None:
    model = Leaf()
    for name in ("zeta", "alpha", "mu"):
        model.add_module(name, nn.Linear(2, 3))
    assert [p.name for p in find_projections(model)] == ["zeta", "alpha", "mu"]


def test_attention_is_four_projections_of_its_module() -> None:
    model = Leaf()
    model.mix = nn.MultiheadAttention(8, 2, kdim=6, vdim=4)
    assert find_projections(model) == [
        Projection("mix.q_proj", "q", (8, 8), "mix", "attention"),
        Projection("mix.k_proj", "k", (8, 6), "mix", "attention"),
        Projection("mix.v_proj", "v", (8, 4), "mix", "attention"),
        Projection("mix.out_proj", "attn_out", (8, 8), "mix", "attention"),
    ]


def test_a_subclass_that_keeps_the_forward_is_a_projection() -> None:
    class Named(nn.Linear):
        pass

    model = Leaf()
    model.fc1 = Named(4, 6)
    assert find_projections(model) == [Projection("fc1", "mlp_in", (6, 4), "fc1", "linear")]


def test_tied_weights_name_each_other() -> None:
    model = Leaf()
    model.embedding = nn.Embedding(5, 4)
    model.one = nn.Linear(4, 5)
    model.one.weight = model.embedding.weight
    model.two = nn.Linear(4, 5)
    model.two.weight = nn.Parameter(model.embedding.weight.detach())
    model.free = nn.Linear(4, 5)
    tied = {p.name: p.tied_with for p in find_projections(model)}
    assert tied == {"one": "embedding.weight", "two": "embedding.weight", "free": None}


def test_neighbours_in_one_buffer_are_not_tied() -> None:
    flat = torch.rand(32)
    model = Leaf()
    model.one, model.two, model.three = (nn.Linear(4, 4) for _ in range(3))
    model.one.weight = nn.Parameter(flat[:16].view(4, 4))
    model.two.weight = nn.Parameter(flat[16:].view(4, 4))
    model.three.weight = nn.Parameter(flat[15:31].view(4, 4))
    tied = {p.name: p.tied_with for p in find_projections(model)}
    assert tied == {"one": "three.weight", "two": "three.weight", "three": "one.weight"}


def test_models_without_storage() -> None:
    with torch.device("meta"):
        model = Leaf()
        model.a, model.b = nn.Linear(4, 4), nn.Linear(4, 4)
        model.b.weight = model.a.weight
    model.c = nn.Linear(4, 4, device="meta")
    tied = {p.name: p.tied_with for p in find_projections(model)}
    assert tied == {"a": "b.weight", "b": "a.weight", "c": None}


def test_finding_projections_imports_no_transformers() -> None:
    script = (
        "import sys, torch, padst_fx.projections as p;"
        "before = set(sys.modules);"
        "found = p.find_projections(torch.nn.Sequential(torch.nn.Linear(2, 2)));"
        "assert len(found) == 1;"
        "new = {m for m in set(sys.modules) - before if not m.startswith('padst_fx')};"
        "print(sorted(new & {'transformers'}), 'transformers' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.stdout.strip() == "[] False", result.stderr
