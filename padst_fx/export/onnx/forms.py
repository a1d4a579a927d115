"""In which form a sparse layer is computed: what each form costs, and the cheapest one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from padst_fx.export.onnx.row_blocks import RowBlocks, mask_of
from padst_fx.export.onnx.sources import SparseNode

FORMS = {
    "dense": "one MatMul with the dense matrix",
    "2:4": "one MatMul with the dense matrix, in which two of four adjacent inputs are zero",
    "gather": "a Gather of the inputs that row blocks read, and a batched MatMul over the blocks",
}
TILES = (8, 16, 32, 64, 128)


@dataclass(frozen=True)
class Costs:
    """What a runtime takes on one core, in nanoseconds.

    `product` is for one multiply-add, `weight` for a stored number that a product reads, `gather`
    for a number that is gathered and packed for a product, `turn` for one that is transposed,
    `call` for the operators beside a batched product.
    """

    product: float
    weight: float
    gather: float
    turn: float
    call: float

    def dense(self, tokens: int, layer: SparseNode) -> float:
        """Of one product with the dense matrix."""
        weights = layer.in_features * layer.out_features
        return weights * (tokens * self.product + self.weight)

    def blocks(self, tokens: int, layer: SparseNode, blocks: RowBlocks) -> float:
        """Of a Gather and a batched product for each batch of row blocks."""
        weights = blocks.gathered * blocks.tile
        products = weights * (tokens * self.product + self.weight)
        turned = layer.in_features + layer.out_features
        if not blocks.in_order:
            turned += layer.out_features
        moved = tokens * (blocks.gathered * self.gather + turned * self.turn)
        return products + moved + len(blocks.batches) * self.call


# onnxruntime 1.32, AVX-512, fp32: `docs/onnx.md` has the measurements.
COSTS = Costs(product=0.019, weight=0.16, gather=1.1, turn=1.2, call=10_000)


@dataclass(frozen=True)
class Form:
    """How a layer is computed: one of `FORMS`, why, and the row blocks of a gather."""

    name: str
    reason: str
    blocks: RowBlocks | None = None


Choice = Callable[[SparseNode, int], Form]


def choose(layer: SparseNode, tokens: int) -> Form:
    """The cheapest form of a layer at a number of tokens."""
    if layer.is_two_four:
        return Form("2:4", "runtimes with a product for 2:4 weights look for them")
    dense = COSTS.dense(tokens, layer)
    cuts = candidates(layer)
    if not cuts:
        return Form("dense", f"{layer.out_features} rows are no multiple of {TILES[0]}")
    costs = [COSTS.blocks(tokens, layer, blocks) for blocks in cuts]
    least = min(costs)
    blocks = cuts[costs.index(least)]
    width = blocks.gathered * blocks.tile / layer.out_features
    reason = (
        f"{blocks.tile} rows together read {width:.0f} of {layer.in_features} inputs: predicted "
        f"{least / dense:.2f} of a dense product's time at {tokens} tokens"
    )
    return Form("dense", reason) if least >= dense else Form("gather", reason, blocks)


def candidates(layer: SparseNode) -> list[RowBlocks]:
    """The row blocks that a layer could be cut into."""
    mask = mask_of(layer)
    tiles = [tile for tile in TILES if layer.out_features % tile == 0]
    return [RowBlocks.of(mask, tile, layer.stretch) for tile in tiles]
