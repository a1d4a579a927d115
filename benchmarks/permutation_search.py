"""How long the search for a permutation takes, and what it gains.

Weights are Gaussian with rows and columns of lognormal scale (0.5), as trained ones tend to be.
"""

from __future__ import annotations

import torch

import padst_fx
from benchmarks.settings import Settings
from benchmarks.table import Row, Table
from benchmarks.timing import seconds
from padst_fx.permutation_search import Retained, search

STRUCTURES: dict[str, padst_fx.Structure] = {
    "Diag()": padst_fx.Diag(),
    "Diag(width=16)": padst_fx.Diag(width=16),
    "Block(16)": padst_fx.Block(16),
    "NM(1, 10)": padst_fx.NM(1, 10),
}
SHAPES = ((768, 768), (3072, 768), (768, 3072))
SPARSITY = 0.9


def measure(name: str, out: int, inputs: int) -> Row:
    """One search, timed once."""
    generator = torch.Generator().manual_seed(0)
    rows, columns = (
        (0.5 * torch.randn(shape, generator=generator)).exp() for shape in ((out, 1), (1, inputs))
    )
    size = torch.randn(out, inputs, generator=generator).abs() * rows * columns
    pattern = STRUCTURES[name].bind(out, inputs, SPARSITY)
    found: list[Retained] = []
    spent = seconds(lambda: found.append(search(pattern, size)[1]))
    return {
        "structure": name,
        "out": out,
        "in": inputs,
        "seconds": round(spent, 2),
        "kept_identity": round(found[0].identity, 4),
        "kept_permuted": round(found[0].permuted, 4),
    }


def run(settings: Settings) -> Table:
    """Every structure and shape; one shape with `--quick`."""
    names = [name for name in STRUCTURES if name in (settings.only or STRUCTURES)]
    shapes = SHAPES[:1] if settings.quick else SHAPES
    rows = [measure(name, *shape) for name in names for shape in shapes]
    return Table(
        name="permutation_search",
        title=f"search of one permutation, {SPARSITY:.0%} sparse",
        rows=rows,
        shown=(
            ["structure", "shape", "seconds", "kept without", "kept"],
            [
                [
                    row["structure"],
                    f"{row['out']} x {row['in']}",
                    f"{row['seconds']:.1f}",
                    f"{row['kept_identity']:.1%}",
                    f"{row['kept_permuted']:.1%}",
                ]
                for row in rows
            ],
        ),
    )
