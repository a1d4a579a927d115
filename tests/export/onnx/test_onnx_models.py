"""Small transformers that have every structure in them, at other sizes than the example's."""

from __future__ import annotations

import model_zoo
import onnx
import pytest
import torch
from onnx_checks import check, session
from torch import nn
from torch.export import Dim

import padst_fx
from padst_fx import NM, Block, Diag, SparseLinear, Unstructured

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
ROWS, TOKENS = {0: Dim.DYNAMIC}, {0: Dim.DYNAMIC, 1: Dim.DYNAMIC}
SHAPES = {
    "vit": {"pixel_values": ROWS},
    "gpt2": {"input_ids": TOKENS},
    "bert": {"input_ids": TOKENS, "attention_mask": TOKENS},
    "llama": {"input_ids": TOKENS},
}


def mixed(name: str) -> nn.Module:
    """The model with one structure after the other in its projections, behind permutations."""
    model = model_zoo.get(name).build()
    torch.manual_seed(0)
    heads = ("classifier", "lm_head", "pooler.dense")
    found = [
        (path, module)
        for path, module in model.named_modules()
        if type(module).__name__ in ("Linear", "Conv1D") and not path.endswith(heads)
    ]
    for number, (path, module) in enumerate(found):
        structure = STRUCTURES[number % len(STRUCTURES)]
        permutation = ("random", "identity")[number % 3 == 2]
        sparsity = None if isinstance(structure, NM) else 0.5
        layer = SparseLinear.from_dense(module, structure, sparsity, permutation=permutation)
        model.set_submodule(path, layer)
    assert len(found) >= len(STRUCTURES)
    return model


def inputs(name: str, batch: int, tokens: int) -> dict[str, torch.Tensor]:
    if name == "vit":
        return {"pixel_values": torch.randn(batch, 3, 16, 16)}
    made = {"input_ids": torch.randint(3, model_zoo.VOCABULARY, (batch, tokens))}
    if name == "bert":
        made["attention_mask"] = torch.ones(batch, tokens, dtype=torch.int64)
        made["attention_mask"][-1, tokens // 2 :] = 0
    return made


@pytest.mark.parametrize("name", SHAPES)
def test_equal_to_the_eager_model(name, tmp_path):
    model = mixed(name)
    report = padst_fx.export_onnx(
        model, inputs(name, 2, 12), tmp_path / "model.onnx", {**SHAPES[name]}
    )
    assert len(report.layers) == sum(isinstance(m, SparseLinear) for m in model.modules())
    onnx.checker.check_model(report.path)
    opened = session(report.path)
    for batch, tokens in ((2, 12), (1, 5), (3, 31)):
        check(opened, model, inputs(name, batch, tokens))
