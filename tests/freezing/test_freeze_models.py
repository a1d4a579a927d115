"""Real models from small configurations, with every kind of structure."""

from __future__ import annotations

import model_zoo
import pytest
import torch
from frozen_checks import gathers_in, reads_through
from torch import nn
from torch.utils import _pytree as pytree

import padst_fx
from padst_fx import NM, Block, Diag, Unstructured

# Per model: sparse layers in all, and those whose order NM's single rows and the dense layers
# around them can take (BERT, whose stream is an output, only behind the activation of its MLPs).
FOLDED = {
    "vit": (12, 3),
    "gpt2": (8, 3),
    "bert": (13, 2),
    "bert_masked_lm": (13, 3),
    "llama": (14, 3),
    "t5_gated": (36, 4),
    "bart": (32, 4),
    "torch_encoder": (12, 3),
    "mixer": (8, 5),
}


def frozen(name, structure):
    entry = model_zoo.get(name)
    model = entry.build()
    torch.manual_seed(0)
    padst_fx.sparsify(model, structure, 0.5, permutation="random", init="magnitude")
    return entry, model, padst_fx.freeze(model, entry.inputs(), skip_slower=False)


@torch.no_grad()
def check_same(entry, model, result):
    for seed in (0, 1):
        inputs = entry.inputs(seed)
        call = (lambda m, i=inputs: m(**i)) if isinstance(inputs, dict) else (
            lambda m, i=inputs: m(*i)
        )  # fmt: skip
        expected, found = call(model), call(result)
        assert type(found) is type(expected)
        assert pytree.tree_structure(found) == pytree.tree_structure(expected)
        for a, b in zip(pytree.tree_leaves(found), pytree.tree_leaves(expected), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", FOLDED)
def test_rows_that_can_move(name):
    entry, model, result = frozen(name, NM(1, 2))
    check_same(entry, model, result)
    layers, folded = FOLDED[name]
    assert dict(result.report.counts) == {"folded": folded, "read through": layers - folded}
    assert reads_through(result) == layers - folded
    assert gathers_in(result) == sum("index" in str(n.target) for n in masks(result))


def masks(result):
    """Look-ups of masks and positions, which are in some models anyway."""
    return [n for n in result.program.graph.nodes if n.target is torch.ops.aten.index.Tensor]


@pytest.mark.parametrize("name", ["vit", "gpt2", "bert", "llama"])
@pytest.mark.parametrize("structure", [Diag(), Diag(width=8), Block(8)])
def test_rows_that_cannot_move(name, structure):
    entry, model, result = frozen(name, structure)
    check_same(entry, model, result)
    assert dict(result.report.counts) == {"read through": FOLDED[name][0]}
    assert result.report.gathers == 0


@pytest.mark.parametrize("name", ["vit", "gpt2", "bert", "llama"])
def test_masked_weights_take_every_order(name):
    entry, model, result = frozen(name, Unstructured())
    check_same(entry, model, result)
    assert dict(result.report.counts) == {"folded": FOLDED[name][0]}
    assert not [n for n in result.program.graph.nodes if "index_select" in str(n.target)]


class Block_(nn.Module):
    """A pre-norm transformer block, dense but for what `sparsify` takes."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 64), nn.GELU(), nn.Linear(64, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.mlp(self.norm(x))


@pytest.mark.parametrize("structure", [Diag(), Diag(width=8), Block(8), NM(1, 2), Unstructured()])
def test_a_pre_norm_mlp_keeps_no_gather(structure):
    model = nn.Sequential(nn.Linear(32, 32), Block_(), Block_(), nn.Linear(32, 4)).eval()
    padst_fx.sparsify(model, structure, 0.5, include="*mlp*", permutation="random")
    x = torch.randn(3, 5, 32)
    result = padst_fx.freeze(model, x, skip_slower=False)
    torch.testing.assert_close(result(x), model(x), rtol=1e-5, atol=1e-5)
    assert gathers_in(result) == result.report.gathers == 0


@pytest.mark.parametrize("structure", [Diag(), Diag(width=8), Block(8), NM(1, 2), Unstructured()])
def test_a_single_vit_block_keeps_no_gather(structure):
    blocks = (m for m in model_zoo.get("vit").build().modules() if type(m).__name__ == "ViTLayer")
    block = padst_fx.sparsify(next(blocks).eval(), structure, 0.5, permutation="random")
    assert sum(isinstance(m, padst_fx.SparseLinear) for m in block.modules()) == 6
    x = torch.randn(3, 5, model_zoo.HIDDEN)
    result = padst_fx.freeze(block, x, skip_slower=False)
    torch.testing.assert_close(result(x), block(x), rtol=1e-5, atol=1e-5)
    assert gathers_in(result) == result.report.gathers == 0


def test_only_the_second_projection_sparse():
    """Behind a dense first projection every structure's order is folded."""
    model = nn.Sequential(nn.Linear(32, 32), Block_(), Block_(), nn.Linear(32, 4)).eval()
    padst_fx.sparsify(model, "diag", 0.5, include="*mlp.2", permutation="random")
    result = padst_fx.freeze(model, torch.randn(3, 5, 32), skip_slower=False)
    assert dict(result.report.counts) == {"folded": 2}
