"""A small network of sparse projections in float64, for comparisons with dense maths."""

from __future__ import annotations

import torch
from torch import nn

import padst_fx
from padst_fx import NM, Block, Diag, SparseLinear, Unstructured

STRUCTURES = ["diag", Diag(width=4), Block(4), NM(1, 4), Unstructured()]


def smooth_model(structure="diag", permutation="random"):
    """Three projections, the first two with a smooth function between them."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 16), nn.Linear(16, 4))
    sparsity = None if isinstance(structure, NM) else 0.75
    return padst_fx.sparsify(model.double(), structure, sparsity, permutation=permutation)


def layers(model):
    """The sparse layers by name."""
    return {n: m for n, m in model.named_modules() if isinstance(m, SparseLinear)}
