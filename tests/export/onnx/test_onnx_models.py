"""Every structure behind every kind of permutation in small transformers, at other sizes than the
example's."""

from __future__ import annotations

import itertools

import model_zoo
import onnx
import pytest
import torch
from onnx_checks import check, session
from torch import nn
from torch.export import Dim
from zoo_training import call

import padst_fx
from padst_fx import DST, NM, Block, Diag, SoftPermutation, SparseLinear, Unstructured
from padst_fx.export.onnx import forms

STRUCTURES = (
    Diag(),
    Diag(width=8),
    Block(16),
    NM(2, 4),
    Diag(run=4),
    NM(1, 4, tile=16),
    Unstructured(),
    NM(1, 8),
)
KINDS = ("random", "soft", "learned", "identity")
# Neighbours differ in both.
PAIRS = [
    (STRUCTURES[(number + turn) % len(STRUCTURES)], KINDS[number % len(KINDS)])
    for turn, number in itertools.product(range(len(KINDS)), range(len(STRUCTURES)))
]
# So many models of a kind have all pairs in the layers of their two blocks.
PARTS = {"vit": 3, "gpt2": 4, "bert": 3, "llama": 3}
MODELS = [(name, part) for name, parts in PARTS.items() for part in range(parts)]
STEPS = 2
# Layers of this size are dense products, unless gathers cost nothing.
FREE_GATHERS = forms.Costs(product=1, weight=0, gather=0, turn=0, call=0)
# The models of each kind have every pair, so two kinds are enough for the gathered form.
GATHERED = ("vit", "bert")
ROWS, TOKENS = {0: Dim.DYNAMIC}, {0: Dim.DYNAMIC, 1: Dim.DYNAMIC}
SHAPES = {
    "vit": {"pixel_values": ROWS},
    "gpt2": {"input_ids": TOKENS},
    "bert": {"input_ids": TOKENS, "attention_mask": TOKENS},
    "llama": {"input_ids": TOKENS},
}


def mixed(name: str, part: int) -> nn.Module:
    """The model with one pair after the other in its projections, going on from the part before."""
    model = model_zoo.get(name).build()
    torch.manual_seed(0)
    heads = ("classifier", "lm_head", "pooler.dense")
    found = [
        (path, module)
        for path, module in model.named_modules()
        if type(module).__name__ in ("Linear", "Conv1D") and not path.endswith(heads)
    ]
    for number, (path, module) in enumerate(found, part * len(found)):
        structure, kind = PAIRS[number % len(PAIRS)]
        sparsity = None if isinstance(structure, NM) else 0.5
        layer = SparseLinear.from_dense(module, structure, sparsity, permutation=kind)
        model.set_submodule(path, layer)
    return model


def trained(name: str, part: int) -> nn.Module:
    """The model after a few steps that begin far from where a training does, and end with soft
    permutations hardened."""
    model, entry = mixed(name, part).train(), model_zoo.get(name)
    layers = [each for each in model.modules() if isinstance(each, SparseLinear)]
    for layer in layers:
        _move(layer)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    soft = SoftPermutation(harden_at=STEPS)
    dst = DST(model, optimizer, "rigl", delta_t=1, t_end=2 * STEPS, soft=soft)
    for step in range(STEPS):
        loss = entry.loss(call(model, entry, step)) + dst.penalty()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        dst.step()
    dst.close()
    assert all(layer.soft_perm is None for layer in layers)
    permuted = [layer for layer in layers if layer.permutation != "identity"]
    assert all(bool((layer.perm.diff() != 1).any()) for layer in permuted)
    return model.eval()


@torch.no_grad()
def _move(layer: SparseLinear) -> None:
    """A learned or soft permutation far from the identity, as a long training may leave it."""
    order = torch.randperm(layer.in_features)
    if layer.permutation == "learned":
        layer.perm.copy_(order)
    if layer.soft_perm is not None:
        layer.soft_perm.copy_(0.9 * torch.eye(layer.in_features)[order] + 0.1 / len(order))


def inputs(name: str, batch: int, tokens: int) -> dict[str, torch.Tensor]:
    if name == "vit":
        return {"pixel_values": torch.randn(batch, 3, 16, 16)}
    made = {"input_ids": torch.randint(3, model_zoo.VOCABULARY, (batch, tokens))}
    if name == "bert":
        made["attention_mask"] = torch.ones(batch, tokens, dtype=torch.int64)
        made["attention_mask"][-1, tokens // 2 :] = 0
    return made


@pytest.mark.parametrize("name", PARTS)
def test_the_parts_of_a_model_have_every_pair(name):
    models = [mixed(name, part) for part in range(PARTS[name])]
    layers = [m for model in models for m in model.modules() if isinstance(m, SparseLinear)]
    found = {(layer.pattern.structure, layer.permutation) for layer in layers}
    assert found == set(itertools.product(STRUCTURES, KINDS))


@pytest.mark.parametrize(("name", "part"), MODELS)
def test_equal_to_the_eager_model(name, part, tmp_path, monkeypatch):
    model = trained(name, part)
    frozen = padst_fx.freeze(model, inputs(name, 2, 12), {**SHAPES[name]}, skip_slower=False)
    reports = [exported(frozen, name, tmp_path / "dense.onnx")]
    assert reports[0].counts["gather"] == 0
    if name in GATHERED:
        monkeypatch.setattr(forms, "COSTS", FREE_GATHERS)
        reports.append(exported(frozen, name, tmp_path / "gathered.onnx"))
        assert reports[1].counts["gather"] > 0
    for report in reports:
        assert len(report.layers) == sum(isinstance(m, SparseLinear) for m in model.modules())
        onnx.checker.check_model(report.path)
        opened = session(report.path)
        for batch, tokens in ((2, 12), (1, 5), (3, 31)):
            given = inputs(name, batch, tokens)
            check(opened, frozen, given)
            check(opened, model, given)


def exported(frozen, name, path):
    return padst_fx.export_onnx(frozen, inputs(name, 2, 12), path, {**SHAPES[name]})
