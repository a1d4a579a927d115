"""Columns of sparse weights against the dense matrix."""

from __future__ import annotations

import pytest
import torch

from padst_fx import NM, Block, Diag, SparseLinear, Unstructured
from padst_fx.dst.columns import Columns

CASES = [(Diag(), 0.75), (Diag(width=4), 0.5), (Block(4), 0.5), (NM(2, 4), None),
         (Unstructured(), 0.75)]  # fmt: skip
CHOSEN = torch.tensor([1, 4, 5, 11, 15])
ORDER = torch.tensor([2, 0, 1, 3, 4])


@pytest.mark.parametrize("shape", [(16, 24), (16, 8)], ids=str)
@pytest.mark.parametrize(("structure", "sparsity"), CASES, ids=str)
def test_columns_are_those_of_the_dense_matrix(structure, sparsity, shape):
    torch.manual_seed(0)
    layer = SparseLinear(*shape, structure, sparsity)
    columns = Columns.of(layer, CHOSEN)
    pattern = layer.pattern
    mask = pattern.mask(layer.index)
    before = pattern.dense(layer.values.detach().clone(), layer.index)
    assert torch.equal(columns.mask(), mask[:, CHOSEN])
    assert torch.equal(columns.dense(layer.values), before[:, CHOSEN])
    columns.exchange([layer.values], ORDER)
    expected = before.clone()
    expected[:, CHOSEN] = before[:, CHOSEN[ORDER]]
    assert torch.equal(pattern.dense(layer.values.detach(), layer.index), expected * mask)
