"""In which form a sparse layer is computed: what each form costs, and the cheapest one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from padst_fx.export.onnx.row_blocks import RowBlocks, mask_of
from padst_fx.export.onnx.sources import SparseNode

FORMS = {
    "dense": "one MatMul with the dense matrix",
    "2:4": "one MatMul with the dense matrix, in which two of four adjacent inputs are zero",
    "gather": "one Gather of the columns that row blocks read, and a batched MatMul over the blocks",
}
TILES = (8, 16, 32, 64, 128)




@dataclass(frozen=True)
class Costs:
    """What onnxruntime takes on one core, in nanoseconds; `docs/onnx.md` says how it was measured.

    `product` is for one multiply-add of a large product, `narrow` what each row of a gathered
    block adds to those of its products, `copy` for a gathered number, `turn` for a number that is
    transposed, `weight` for a stored number that a product reads, `calls` for operators beside
    the product.
    """

    product: float
    narrow: float
    copy: float
    turn: float
    weight: float
    calls: float

    def dense(self, tokens: int, layer: SparseNode) -> float:
        """Of one product with the dense matrix."""
        weights = layer.in_features * layer.out_features
        return weights * (tokens * self.product + self.weight)

    def gather(self, tokens: int, layer: SparseNode, tile: int, width: int) -> float:
        """Of a Gather and a batched product."""
        gathered = layer.out_features // tile * width
        product = gathered * tile * (tokens * self.product + self.weight)
        moved = tokens * (layer.in_features + layer.out_features) * self.turn
        return product + tokens * gathered * (self.narrow + self.copy) + moved + self.calls


COSTS = Costs(product=0.013, narrow=0.05, copy=0.15, turn=0.3, weight=0.1, calls=15_000)


@dataclass(frozen=True)
class Form:
    """How a layer is computed: one of `FORMS`, the row blocks of a gather, and why."""

    name: str
    reason: str
    blocks: RowBlocks | None = None


Choice = Callable[[SparseNode, int], Form]


def choose(layer: SparseNode, tokens: int) -> Form:
    """The cheapest form of a layer at a number of tokens."""
    if layer.is_two_four:
        return Form("2:4", "runtimes with a product for 2:4 weights look for them")
    dense = COSTS.dense(tokens, layer)
    gathers = {
        COSTS.gather(tokens, layer, blocks.tile, blocks.width): blocks
        for blocks in candidates(layer)
    }
    if not gathers:
        return Form("dense", f"its rows have no tiles of {min(TILES)} or more")
    least, blocks = min(gathers.items(), key=lambda pair: pair[0])
    times = f"{least / dense:.2f} of a dense product's time predicted at {tokens} tokens"
    shape = f"{blocks.tile} rows read {blocks.width} of {layer.in_features} inputs"
    if least >= dense:
        return Form("dense", f"{shape}: {times}")
    return Form("gather", f"{shape}: {times}", blocks)


def candidates(layer: SparseNode) -> list[RowBlocks]:
    """The row blocks a layer could be cut into."""
    mask = mask_of(layer)
    tiles = [tile for tile in TILES if layer.out_features % tile == 0]
    return [RowBlocks.of(mask, tile) for tile in tiles]
