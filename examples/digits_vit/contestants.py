"""What is compared: a dense model and three kinds of mask, each compiled once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import padst_fx
from examples.digits_vit.model import VisionTransformer

SPARSITY = 0.9
STRUCTURES: dict[str, padst_fx.Structure | None] = {
    "dense": None,
    "RigL": padst_fx.Unstructured(),
    "Diag": padst_fx.Diag(),
    "Block": padst_fx.Block(size=4),
}


@dataclass(frozen=True)
class Contestant:
    """A model, its compiled form (which shares the parameters) and the projections compared."""

    name: str
    model: VisionTransformer
    compiled: Callable[[Tensor], Tensor]
    projections: dict[str, nn.Module]

    @property
    def sparse(self) -> bool:
        return any(isinstance(p, padst_fx.SparseLinear) for p in self.projections.values())


def build(name: str) -> Contestant:
    """A fresh model; its eight projections, all but embedding and head, sparse unless "dense"."""
    structure = STRUCTURES[name]
    model = VisionTransformer()
    names = [n for n, m in model.blocks.named_modules() if isinstance(m, nn.Linear)]
    if structure is not None:
        # Structures alone are compared here: no permutations.
        padst_fx.sparsify(
            model, structure, SPARSITY, permutation="identity", include="blocks.*", init="random"
        )
    projections = {n: model.blocks.get_submodule(n) for n in names}
    compiled = torch.compile(model, backend="padst", fullgraph=True)
    return Contestant(name, model, compiled, projections)
