"""Whether queries, keys and values should share one permutation.

One layer of a ViT-B/16, its six projections 90 % sparse and the layer compiled, with the three
first projections behind identities, behind one permutation that they share, and behind three
different ones: inference on one image, and a training step (forward and backward) on eight. What
identities save against three permutations is the most that sharing could.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

import padst_fx
from benchmarks.compiled import compiled
from benchmarks.models import vit_b16
from benchmarks.settings import Settings
from benchmarks.structures import STRUCTURES
from benchmarks.table import Row, Table
from benchmarks.timing import Ratio, interleaved

NAMES, QUICK = ("Diag()", "Block(16)"), ("Diag()",)
SPARSITY, TOKENS, WIDTH, BATCH = 0.9, 197, 768, 8
BASELINE = "three"
KINDS = ("identity", "shared", BASELINE)


def layer_of(structure: padst_fx.Structure, kind: str) -> nn.Module:
    """A transformer layer that reads queries, keys and values as `kind` says."""
    torch.manual_seed(0)
    layer = next(m for m in vit_b16(1).modules() if type(m).__name__ == "ViTLayer")
    permutation = "identity" if kind == "identity" else "random"
    padst_fx.sparsify(layer, structure, SPARSITY, permutation=permutation, init="random")
    readers = [
        module
        for module in layer.modules()
        if isinstance(module, padst_fx.SparseLinear) and module.role in ("q", "k", "v")
    ]
    if len(readers) != 3:
        raise RuntimeError(f"expected three sparse readers of one input, found {len(readers)}")
    if kind == "shared":
        for reader in readers[1:]:
            reader.perm.copy_(readers[0].perm)
    return layer


def inference(layer: nn.Module) -> Callable[[], object]:
    """A compiled forward on one image."""
    x, call = torch.randn(1, TOKENS, WIDTH), compiled(layer.eval(), "padst")

    @torch.no_grad()
    def run() -> object:
        return call(x)

    return run


def training(layer: nn.Module) -> Callable[[], object]:
    """A compiled forward and backward on a batch."""
    x, call = torch.randn(BATCH, TOKENS, WIDTH, requires_grad=True), compiled(layer, "padst")
    return lambda: call(x).square().mean().backward()


PARTS: dict[str, Callable[[nn.Module], Callable[[], object]]] = {
    "inference": inference,
    "training": training,
}


def rows_of(name: str, part: str, rounds: int) -> list[Row]:
    """Milliseconds of each kind, and in those of three permutations."""
    calls = {kind: PARTS[part](layer_of(STRUCTURES[name], kind)) for kind in KINDS}
    times = interleaved(calls, rounds)
    torch.compiler.reset()
    rows = []
    for kind in KINDS:
        ratio = Ratio.of(times[kind], times[BASELINE])
        rows.append(
            {
                "structure": name,
                "part": part,
                "permutations": kind,
                "ms": round(1e3 * times[kind].median, 3),
                "ratio": round(ratio.value, 4),
                "ratio_low": round(ratio.low, 4),
                "ratio_high": round(ratio.high, 4),
            }
        )
    return rows


def run(settings: Settings) -> Table:
    """Every structure and part; inference of one with `--quick`."""
    names = [name for name in settings.choose(NAMES, QUICK) if name in NAMES]
    parts = ["inference"] if settings.quick else list(PARTS)
    rows = [
        row for name in names for part in parts for row in rows_of(name, part, settings.rounds)
    ]
    return Table(
        name="shared_reads",
        title="a ViT-B/16 layer; time against three different permutations of q, k and v",
        rows=rows,
        shown=(list(rows[0]), [[str(value) for value in row.values()] for row in rows]),
    )
