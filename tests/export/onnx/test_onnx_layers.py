"""Every structure with a permutation and without, in one file each way."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path

import onnx
import pytest
import torch
from onnx_checks import TOLERANCE, error, outputs, run, session
from torch import Tensor, nn
from torch.export import Dim

import padst_fx
from padst_fx import NM, Block, Diag, SparseLinear, Unstructured

STRUCTURES = (
    Diag(),
    Diag(run=4),
    Diag(width=8),
    Block(8),
    NM(2, 4),
    NM(1, 10),
    NM(1, 6, tile=16),
    Unstructured(),
)
PERMUTATIONS = ("identity", "random")
SHAPES = ((64, 96), (96, 64), (64, 64))


def layer(structure: padst_fx.Structure, permutation: str, shape: tuple[int, int]) -> SparseLinear:
    sparsity = None if isinstance(structure, NM) else 0.75
    return SparseLinear(*shape, structure, sparsity, permutation=permutation)


class Branches(nn.Module):
    """Every combination, side by side; the smaller ones of two widths read a part of the input."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(
            layer(structure, permutation, SHAPES[number % len(SHAPES)])
            for number, (structure, permutation) in enumerate(
                itertools.product(STRUCTURES, PERMUTATIONS)
            )
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        return [branch(x[..., : branch.in_features]) for branch in self.layers]


OPERATORS = {"shift": "Shift", "gather_gemm": "GatherGemm", "scatter_gemm": "ScatterGemm"}


def custom_nodes(path: Path) -> Counter[str]:
    """How many nodes of each custom operator a file has; each is defined in the file too."""
    model = onnx.load(path)
    defined = {function.name for function in model.functions if function.domain == "padst"}
    found = Counter(node.op_type for node in model.graph.node if node.domain == "padst")
    assert set(found) <= defined
    return found


@pytest.fixture(scope="module")
def branches() -> Branches:
    return Branches().eval()


@pytest.mark.parametrize(
    ("tokens", "custom_ops"), [((2, 2), False), ((4, 40), False), ((4, 40), True)]
)
def test_equal_to_the_eager_model(branches, tmp_path, custom_ops, tokens):
    path = tmp_path / "branches.onnx"
    shapes = {"x": {0: Dim.DYNAMIC, 1: Dim.DYNAMIC}}
    report = padst_fx.export_onnx(
        branches, torch.randn(*tokens, 96), path, shapes, custom_ops=custom_ops
    )
    assert len(report.layers) == len(branches.layers)
    onnx.checker.check_model(path)
    kernels = [layer.pattern.kernel for layer in branches.layers if custom_ops]
    # A masked weight stays a product, with a weight that is unpacked first.
    assert custom_nodes(path) == Counter(OPERATORS.get(each, "GapWeight") for each in kernels)
    opened = session(path)
    for size in ((3, 7, 96), (1, 1, 96), (2, 50, 96)):
        x = torch.randn(size)
        assert error(run(opened, x), outputs(branches, x)) < TOLERANCE
