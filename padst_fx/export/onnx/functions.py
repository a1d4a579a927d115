"""The maths of the sparse ops in standard ONNX operators, as functions of the `padst` domain.

The three `*Weight` functions make the dense `[in, out]` matrix of a layer, transposed S, from
values and index as they are stored (`docs/structures.md`): a runtime that folds constants does so
once, when it loads the file. `GatherGemm`, `ScatterGemm` and `Shift` are the whole layers.
"""

from __future__ import annotations

from onnxscript import opset18 as op
from onnxscript import script
from onnxscript.values import OnnxFunction, Opset

DOMAIN = "padst"
PADST = Opset(DOMAIN, 1)


@script(PADST, default_opset=op)
def Stretches(starts, stretch):
    """All places `[R, E * stretch, 1]` of stretches that begin at `[R, E]`."""
    zero, step = op.Constant(value_int=0), op.Constant(value_int=1)
    inner = op.Range(zero, op.Squeeze(stretch), step)
    places = op.Add(op.Unsqueeze(starts, op.Constant(value_ints=[2])), inner)
    rows = op.Shape(starts, start=0, end=1)
    return op.Reshape(places, op.Concat(rows, op.Constant(value_ints=[-1, 1]), axis=0))


@script(PADST, default_opset=op)
def Blocks(places):
    """The number of its row for every one of `[R, N, 1]` places."""
    zero, step = op.Constant(value_int=0), op.Constant(value_int=1)
    rows = op.Range(zero, op.Squeeze(op.Shape(places, start=0, end=1)), step)
    rows = op.Unsqueeze(rows, op.Constant(value_ints=[1, 2]))
    return op.Expand(rows, op.Shape(places))


@script(PADST, default_opset=op)
def GatherWeight(values, index, window: int, in_features: int):
    """`[in, R V]` from values `[R, E, G, V]` and index `[R, E]`."""
    blocks, entries = op.Shape(values, start=0, end=1), op.Shape(values, start=1, end=2)
    group, tile = op.Shape(values, start=2, end=3), op.Shape(values, start=3, end=4)
    inputs = op.Reshape(in_features, op.Constant(value_ints=[1]))
    size = op.Reshape(window, op.Constant(value_ints=[1]))
    windows = op.Div(op.Sub(op.Add(inputs, size), op.Constant(value_ints=[1])), size)
    zero, step = op.Constant(value_int=0), op.Constant(value_int=1)
    number = op.Range(zero, op.Squeeze(entries), step)
    starts = op.Mul(op.Div(number, op.Div(entries, windows)), size)
    columns = PADST.Stretches(op.Add(op.Mul(op.Cast(index, to=7), group), starts), group)
    where = op.Concat(columns, PADST.Blocks(columns), axis=-1)
    blank = op.Expand(op.CastLike(0.0, values), op.Concat(inputs, blocks, tile, axis=0))
    updates = op.Reshape(values, op.Concat(blocks, op.Mul(entries, group), tile, axis=0))
    matrix = op.ScatterND(blank, where, updates)
    return op.Reshape(matrix, op.Concat(inputs, op.Mul(blocks, tile), axis=0))


@script(PADST, default_opset=op)
def ScatterWeight(values, index, out_features: int):
    """`[R V, out]` from values `[R, E, G, V]` and index `[R, E]`."""
    blocks, entries = op.Shape(values, start=0, end=1), op.Shape(values, start=1, end=2)
    group, tile = op.Shape(values, start=2, end=3), op.Shape(values, start=3, end=4)
    outputs = op.Reshape(out_features, op.Constant(value_ints=[1]))
    places = PADST.Stretches(op.Mul(op.Cast(index, to=7), group), group)
    where = op.Concat(PADST.Blocks(places), places, axis=-1)
    blank = op.Expand(op.CastLike(0.0, values), op.Concat(blocks, outputs, tile, axis=0))
    updates = op.Reshape(values, op.Concat(blocks, op.Mul(entries, group), tile, axis=0))
    matrix = op.Transpose(op.ScatterND(blank, where, updates), perm=[0, 2, 1])
    return op.Reshape(matrix, op.Concat(op.Mul(blocks, tile), outputs, axis=0))


@script(PADST, default_opset=op)
def ShiftWeight(values, offsets, in_features: int, out_features: int):
    """`[in, out]` from values `[K, D]` and offsets `[K]`."""
    zero, step = op.Constant(value_int=0), op.Constant(value_int=1)
    length = op.Squeeze(op.Shape(values, start=1, end=2))
    along = op.Expand(op.Range(zero, length, step), op.Shape(values))
    far = op.Add(op.Unsqueeze(op.Cast(offsets, to=7), op.Constant(value_ints=[1])), along)
    listed = op.Mod(far, op.Max(in_features, out_features))
    tall = op.GreaterOrEqual(out_features, in_features)
    last = op.Constant(value_ints=[2])
    columns = op.Unsqueeze(op.Where(tall, along, listed), last)
    rows = op.Unsqueeze(op.Where(tall, listed, along), last)
    one = op.Constant(value_ints=[1])
    shape = op.Concat(op.Reshape(in_features, one), op.Reshape(out_features, one), axis=0)
    blank = op.Expand(op.CastLike(0.0, values), shape)
    return op.ScatterND(blank, op.Concat(columns, rows, axis=-1), values)


@script(PADST, default_opset=op)
def GapWeight(values, gaps, shape):
    """A tensor of this shape that is zero but for `values`: entry i lies `gaps[i]` after entry
    i - 1 in row-major order, the first one `gaps[0]` after place -1."""
    ends = op.CumSum(op.Cast(gaps, to=7), op.Constant(value_int=0))
    places = op.Unsqueeze(op.Sub(ends, op.Constant(value_int=1)), op.Constant(value_ints=[1]))
    blank = op.Expand(op.CastLike(0.0, values), op.ReduceProd(shape, keepdims=1))
    return op.Reshape(op.ScatterND(blank, places, values), shape)


@script(PADST, default_opset=op)
def GatherGemm(x, values, index, perm, bias, window: int, in_features: int):
    """`padst::gather_gemm` without an activation: x `[..., in]` to `[..., R V]`."""
    weight = PADST.GatherWeight(values, index, window=window, in_features=in_features)
    return op.MatMul(op.Gather(x, perm, axis=-1), weight) + bias


@script(PADST, default_opset=op)
def ScatterGemm(x, values, index, perm, bias, out_features: int):
    """`padst::scatter_gemm` without an activation: x `[..., R V]` to `[..., out]`."""
    weight = PADST.ScatterWeight(values, index, out_features=out_features)
    return op.MatMul(op.Gather(x, perm, axis=-1), weight) + bias


@script(PADST, default_opset=op)
def Shift(x, values, offsets, perm, bias, in_features: int, out_features: int):
    """`padst::shift` without an activation: x `[..., in]` to `[..., out]`."""
    weight = PADST.ShiftWeight(
        values, offsets, in_features=in_features, out_features=out_features
    )
    return op.MatMul(op.Gather(x, perm, axis=-1), weight) + bias


FUNCTIONS: tuple[OnnxFunction, ...] = (
    Stretches,
    Blocks,
    GatherWeight,
    ScatterWeight,
    ShiftWeight,
    GapWeight,
    GatherGemm,
    ScatterGemm,
    Shift,
)
