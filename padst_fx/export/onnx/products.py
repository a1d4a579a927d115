"""The forms of a sparse layer as nodes of an ONNX graph."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
import torch

from padst_fx.export.onnx.forms import Form
from padst_fx.export.onnx.functions import DOMAIN
from padst_fx.export.onnx.row_blocks import Batch, RowBlocks
from padst_fx.export.onnx.sources import WEIGHTS, SparseNode, array_of
from padst_fx.export.onnx.writer import Writer

# Operators that a runtime moves a transposition through.
POINTWISE = frozenset(
    ("Add", "Cast", "Div", "Erf", "Gelu", "Mul", "Neg", "Pow", "Relu", "Sigmoid", "Sub", "Tanh")
)


def compute(writer: Writer, layer: SparseNode, forms: Mapping[ir.Node, Form]) -> ir.Value:
    """The layer's result in its form; `forms` are those of this layer and of all behind it."""
    form = forms[layer.node]
    if form.blocks is not None:
        product = RowBlockProduct(writer, layer, form.blocks)
        return product.movable() if _feeds_gathers(layer.y, forms) else product.fixed()
    y = _two_four(writer, layer) if form.name == "2:4" else _dense(writer, layer)
    return y if layer.bias is None else writer.op("Add", y, layer.bias)


def _feeds_gathers(y: ir.Value, forms: Mapping[ir.Node, Form]) -> bool:
    """Whether only gathers read a result, behind pointwise operators."""
    return not y.is_graph_output() and all(
        (use.node in forms and forms[use.node].blocks is not None)
        or (
            use.node.op_type in POINTWISE
            and all(_feeds_gathers(each, forms) for each in use.node.outputs)
        )
        for use in y.uses()
    )


def _matrix(writer: Writer, layer: SparseNode) -> ir.Value:
    """The layer's dense `[in, out]` matrix behind its permutation, made of constants."""
    return writer.op(
        WEIGHTS[layer.kind], layer.values, layer.index, domain=DOMAIN, **layer.sizes
    )


def _dense(writer: Writer, layer: SparseNode) -> ir.Value:
    """One product with the effective weight, into which the permutation is folded."""
    weight = _matrix(writer, layer)
    if layer.perm is not None:
        place = writer.indices(f"{layer.name}.place", np.argsort(layer.perm))
        weight = writer.op("Gather", weight, place, axis=0)
    return writer.op("MatMul", layer.x, weight)


def _two_four(writer: Writer, layer: SparseNode) -> ir.Value:
    """One product with a 2:4 matrix, which a permutation folded into it would not be."""
    x = layer.x
    if layer.perm is not None:
        order = writer.indices(f"{layer.name}.order", layer.perm)
        x = writer.op("Gather", x, order, axis=-1)
    return writer.op("MatMul", x, _matrix(writer, layer))


class RowBlockProduct:
    """Features first, tokens last: what row blocks read is gathered, and the blocks multiplied.

    The transpositions stand outermost: where one such layer follows another behind an activation,
    a runtime cancels theirs.
    """

    def __init__(self, writer: Writer, layer: SparseNode, blocks: RowBlocks) -> None:
        self.writer = writer
        self.layer = layer
        self.blocks = blocks
        self.rows = layer.out_features // blocks.tile
        self.stretches = layer.in_features // blocks.stretch
        assert layer.x.shape is not None
        self.leading = list(range(len(layer.x.shape) - 1))

    def movable(self) -> ir.Value:
        """`[..., out]`, by a transposition that a runtime moves through what follows."""
        op = self.writer.op
        sizes = op("Shape", self.layer.x, start=0, end=-1)
        sizes = op("Concat", self.writer.shape(self.layer.out_features), sizes, axis=0)
        y = self._with_bias(op("Reshape", self._in_order(), sizes), len(self.leading))
        return op("Transpose", y, perm=[place + 1 for place in self.leading] + [0])

    def fixed(self) -> ir.Value:
        """`[..., out]`, by a transposition that stays: merged into one of attention heads it would
        be several times as slow."""
        op, tile = self.writer.op, self.blocks.tile
        y = op("Reshape", self._in_order(), self.writer.shape(self.rows, tile, -1))
        if self.layer.bias is not None:
            bias = op("Reshape", self.layer.bias, self.writer.shape(self.rows, tile, 1))
            y = op("Add", y, bias)
        y = op("Transpose", y, perm=[2, 0, 1])
        sizes = op("Shape", self.layer.x, start=0, end=-1)
        sizes = op("Concat", sizes, self.writer.shape(self.layer.out_features), axis=0)
        return op("Reshape", y, sizes)

    def _with_bias(self, y: ir.Value, behind: int) -> ir.Value:
        """The sum with the bias along the first of `1 + behind` dimensions."""
        if self.layer.bias is None:
            return y
        shape = self.writer.shape(self.layer.out_features, *[1] * behind)
        return self.writer.op("Add", y, self.writer.op("Reshape", self.layer.bias, shape))

    def _products(self) -> list[ir.Value]:
        """`[B, tile, tokens]` of every batch of row blocks."""
        x, matrix = self._by_stretch(), self._by_block()
        return [
            self._product(x, matrix, batch, "" if self.blocks.in_order else f".{number}")
            for number, batch in enumerate(self.blocks.batches)
        ]

    def _by_stretch(self) -> ir.Value:
        """The activations, `[stretches, stretch * tokens]`."""
        op = self.writer.op
        x = op("Transpose", self.layer.x, perm=[len(self.leading), *self.leading])
        if self.layer.perm is not None:
            order = self.writer.indices(f"{self.layer.name}.order", self.layer.perm)
            x = op("Gather", x, order, axis=0)
        return op("Reshape", x, self.writer.shape(self.stretches, -1))

    def _by_block(self) -> ir.Value:
        """The matrix, `[rows, stretches, stretch * tile]`, and zeros behind the last stretch."""
        op, shape = self.writer.op, self.writer.shape
        tile, stretch = self.blocks.tile, self.blocks.stretch
        cut = op("Reshape", _matrix(self.writer, self.layer),
                 shape(self.layer.in_features, self.rows, tile))  # fmt: skip
        by_block = op("Reshape", op("Transpose", cut, perm=[1, 0, 2]),
                      shape(self.rows, self.stretches, stretch * tile))  # fmt: skip
        zeros = op("Expand", self._zero(), shape(self.rows, 1, stretch * tile))
        return op("Concat", by_block, zeros, axis=1)

    def _product(self, x: ir.Value, matrix: ir.Value, batch: Batch, suffix: str) -> ir.Value:
        op, shape = self.writer.op, self.writer.shape
        count, width = len(batch.rows), batch.reads.shape[1] * self.blocks.stretch
        if not width:
            return self._zeros(x, count)
        reads = self.writer.indices(f"{self.layer.name}.reads{suffix}", batch.reads.numpy())
        if not self.blocks.in_order:
            rows = self.writer.indices(f"{self.layer.name}.rows{suffix}", batch.rows.numpy())
            matrix = op("Gather", matrix, rows, axis=0)
        weight = op("GatherND", matrix, op("Unsqueeze", reads, shape(2)), batch_dims=1)
        weight = op("Reshape", weight, shape(count, width, self.blocks.tile))
        # What fills a block up is multiplied by zeros, whatever it reads.
        read = op("Gather", x, op("Mod", reads, shape(self.stretches)), axis=0)
        read = op("Reshape", read, shape(count, width, -1))
        return op("MatMul", op("Transpose", weight, perm=[0, 2, 1]), read)

    def _zeros(self, x: ir.Value, count: int) -> ir.Value:
        """`[count, tile, tokens]` of row blocks that read nothing."""
        op, shape = self.writer.op, self.writer.shape
        tokens = op("Shape", op("Reshape", x, shape(self.layer.in_features, -1)), start=1)
        sizes = op("Concat", shape(count, self.blocks.tile), tokens, axis=0)
        return op("Expand", self._zero(), sizes)

    def _zero(self) -> ir.Value:
        dtype = array_of(self.layer.values).dtype
        return self.writer.constant(f"{self.layer.name}.zero", np.zeros((), dtype))

    def _in_order(self) -> ir.Value:
        """The products of all batches in the order of the matrix's rows."""
        products = self._products()
        if self.blocks.in_order:
            return products[0]
        place = torch.cat([batch.rows for batch in self.blocks.batches]).argsort().numpy()
        order = self.writer.indices(f"{self.layer.name}.rows", place)
        return self.writer.op(
            "Gather", self.writer.op("Concat", *products, axis=0), order, axis=0
        )
