"""In which form a sparse layer goes to TensorRT through ONNX."""

from __future__ import annotations

from padst_fx.export.onnx.forms import Form, candidates
from padst_fx.export.onnx.sources import SparseNode

# A gather moves activations that a dense product reads in place: it has to save this much.
LARGEST_SHARE = 0.5
SMALLEST_TILE = 16


def choose(layer: SparseNode, tokens: int) -> Form:
    """Row blocks for matrix units where they halve the multiply-adds, else the dense matrix.

    Counted, not measured: of the blocks with the fewest multiply-adds those with most rows.
    """
    if layer.is_two_four:
        return Form("2:4", "TensorRT has sparse matrix units for it")
    blocks = [each for each in candidates(layer) if each.tile >= SMALLEST_TILE]
    if not blocks:
        return Form("dense", f"its rows have no tiles of {SMALLEST_TILE} or more")
    best = min(blocks, key=lambda each: (each.width, -each.tile))
    reason = f"{best.tile} rows read {best.width} of {layer.in_features} inputs"
    if best.width > LARGEST_SHARE * layer.in_features:
        return Form("dense", reason)
    return Form("gather", reason, best)
