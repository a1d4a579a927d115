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
def GatherWeight(values, index, window: int, in_features: int):
    """`[in, R V]` from values `[R, E, G, V]` and index `[R, E]`."""
    blocks, entries = op.Shape(values, end=1), op.Shape(values, start=1, end=2)
    group, tile = op.Shape(values, start=2, end=3), op.Shape(values, start=3)
    inputs = op.Reshape(in_features, [1])
    size = op.Reshape(window, [1])
    windows = (inputs + size - 1) / size
    number = op.Range(0, op.Squeeze(entries), 1)
    starts = number / (entries / windows) * size
    first = op.Cast(index, to=7) * group + starts
    columns = op.Unsqueeze(first, [2]) + op.Range(0, op.Squeeze(group), 1)
    columns = op.Reshape(columns, op.Concat(blocks, entries * group, [1], axis=0))
    rows = op.Unsqueeze(op.Range(0, op.Squeeze(blocks), 1), [1, 2])
    places = op.Concat(columns, op.Expand(rows, op.Shape(columns)), axis=-1)
    nothing = op.Expand(op.CastLike(0.0, values), op.Concat(inputs, blocks, tile, axis=0))
    updates = op.Reshape(values, op.Concat(blocks, entries * group, tile, axis=0))
    matrix = op.ScatterND(nothing, places, updates)
    return op.Reshape(matrix, op.Concat(inputs, blocks * tile, axis=0))


@script(PADST, default_opset=op)
def ScatterWeight(values, index, out_features: int):
    """`[R V, out]` from values `[R, E, G, V]` and index `[R, E]`."""
    blocks, entries = op.Shape(values, end=1), op.Shape(values, start=1, end=2)
    group, tile = op.Shape(values, start=2, end=3), op.Shape(values, start=3)
    outputs = op.Reshape(out_features, [1])
    first = op.Cast(index, to=7) * group
    columns = op.Unsqueeze(first, [2]) + op.Range(0, op.Squeeze(group), 1)
    columns = op.Reshape(columns, op.Concat(blocks, entries * group, [1], axis=0))
    rows = op.Unsqueeze(op.Range(0, op.Squeeze(blocks), 1), [1, 2])
    places = op.Concat(op.Expand(rows, op.Shape(columns)), columns, axis=-1)
    nothing = op.Expand(op.CastLike(0.0, values), op.Concat(blocks, outputs, tile, axis=0))
    updates = op.Reshape(values, op.Concat(blocks, entries * group, tile, axis=0))
    matrix = op.Transpose(op.ScatterND(nothing, places, updates), perm=[0, 2, 1])
    return op.Reshape(matrix, op.Concat(blocks * tile, outputs, axis=0))


@script(PADST, default_opset=op)
def ShiftWeight(values, offsets, in_features: int, out_features: int):
    """`[in, out]` from values `[K, D]` and offsets `[K]`."""
    length = op.Squeeze(op.Shape(values, start=1, end=2))
    along = op.Expand(op.Range(0, length, 1), op.Shape(values))
    far = op.Unsqueeze(op.Cast(offsets, to=7), [1]) + along
    listed = op.Mod(far, op.Max(in_features, out_features))
    tall = out_features >= in_features
    columns = op.Unsqueeze(op.Where(tall, along, listed), [2])
    rows = op.Unsqueeze(op.Where(tall, listed, along), [2])
    shape = op.Concat(op.Reshape(in_features, [1]), op.Reshape(out_features, [1]), axis=0)
    nothing = op.Expand(op.CastLike(0.0, values), shape)
    return op.ScatterND(nothing, op.Concat(columns, rows, axis=-1), values)


@script(PADST, default_opset=op)
def GapWeight(values, gaps, shape):
    """A tensor of this shape that is zero but for `values`: entry i lies `gaps[i]` after entry
    i - 1 in row-major order, the first one `gaps[0]` after place -1."""
    places = op.CumSum(op.Cast(gaps, to=7), 0) - 1
    size = op.ReduceProd(shape, keepdims=1)
    nothing = op.Expand(op.CastLike(0.0, values), size)
    return op.Reshape(op.ScatterND(nothing, op.Unsqueeze(places, [1]), values), shape)


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
    GatherWeight,
    ScatterWeight,
    ShiftWeight,
    GapWeight,
    GatherGemm,
    ScatterGemm,
    Shift,
)
