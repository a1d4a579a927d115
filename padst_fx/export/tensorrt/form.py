"""In which form a sparse layer goes to TensorRT through ONNX.

What decides is counted, not measured: a product of row blocks moves activations that a dense one
reads in place, so it has to halve the multiply-adds.
"""

from __future__ import annotations

from padst_fx.export.onnx.forms import Form, candidates
from padst_fx.export.onnx.row_blocks import RowBlocks
from padst_fx.export.onnx.sources import SparseNode, array_of

LARGEST_SHARE = 0.5
SMALLEST_TILE = 16


def choose(layer: SparseNode, tokens: int) -> Form:
    """The row blocks, for matrix units, with the fewest multiply-adds, else the dense matrix."""
    return _cheapest(layer, [b for b in candidates(layer) if b.tile >= SMALLEST_TILE])


def choose_for_any_mask(layer: SparseNode, tokens: int) -> Form:
    """A form whose tensors have the same shapes for every mask of the layer's structure.

    Such row blocks are those of the structure itself, each of which reads equally many inputs.
    """
    tile = array_of(layer.values).shape[-1]
    own = layer.kind == "GatherGemm" and tile >= SMALLEST_TILE
    return _cheapest(layer, [b for b in candidates(layer) if own and b.tile == tile])


def _cheapest(layer: SparseNode, cuts: list[RowBlocks]) -> Form:
    if layer.is_two_four:
        return Form("2:4", "TensorRT has sparse matrix units for it")
    if not cuts:
        return Form("dense", f"no row blocks of {SMALLEST_TILE} rows or more serve it")
    blocks = min(cuts, key=lambda cut: (cut.gathered * cut.tile, -cut.tile))
    share = blocks.gathered * blocks.tile / (layer.out_features * layer.in_features)
    reason = f"blocks of {blocks.tile} rows read {share:.2f} of the inputs"
    return Form("dense", reason) if share > LARGEST_SHARE else Form("gather", reason, blocks)
