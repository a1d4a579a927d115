"""The sparse ops of an exported program as single nodes of the `padst` domain."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from onnx.defs import OpSchema
from onnxscript import opset18
from onnxscript.values import Op

from padst_fx.export.onnx.functions import DOMAIN, PADST

# Its signatures are for tensors, and these functions are given symbols.
op: Any = opset18
FLOATS = ["tensor(float)", "tensor(double)", "tensor(float16)", "tensor(bfloat16)"]
INTEGERS = ["tensor(uint8)", "tensor(int32)", "tensor(int64)"]


def _node(name: str, index: str, *sizes: str) -> Op:
    """An operator without a body: lowering decides what stands in its place."""
    inputs = [
        OpSchema.FormalParameter(each, kind)
        for each, kind in (("x", "T"), ("values", "T"), (index, "I"), ("perm", "P"), ("bias", "T"))
    ]
    schema = OpSchema(
        name,
        DOMAIN,
        PADST.version,
        inputs=inputs,
        outputs=[OpSchema.FormalParameter("y", "T")],
        type_constraints=[("T", FLOATS, ""), ("I", INTEGERS, ""), ("P", INTEGERS, "")],
        attributes=[OpSchema.Attribute(size, OpSchema.AttrType.INT) for size in sizes],
    )
    return Op(PADST, name, schema)


GATHER = _node("GatherGemm", "index", "window", "in_features")
SCATTER = _node("ScatterGemm", "index", "out_features")
SHIFT = _node("Shift", "offsets", "in_features", "out_features")


def _activated(y: Any, activation: str) -> Any:
    if activation == "relu":
        return op.Relu(y)
    if activation == "silu":
        return op.Mul(y, op.Sigmoid(y))
    if activation == "gelu":
        scaled = op.Mul(y, op.CastLike(op.Constant(value_float=0.5**0.5), y))
        return _half_of(y, op.Erf(scaled))
    if activation == "gelu_tanh":
        cubed = op.Mul(op.Mul(y, y), op.Mul(y, op.CastLike(op.Constant(value_float=0.044715), y)))
        slope = op.CastLike(op.Constant(value_float=0.7978845608028654), y)
        return _half_of(y, op.Tanh(op.Mul(op.Add(y, cubed), slope)))
    return y


def _half_of(y: Any, gate: Any) -> Any:
    """`y (1 + gate) / 2`."""
    half = op.CastLike(op.Constant(value_float=0.5), y)
    one = op.CastLike(op.Constant(value_float=1.0), y)
    return op.Mul(op.Mul(y, half), op.Add(gate, one))


def _gather_gemm(x: Any, values: Any, index: Any, perm: Any, bias: Any,
                 window: int, activation: str) -> Any:  # fmt: skip
    y = GATHER(x, values, index, perm, bias, window=window, in_features=x.shape[-1])
    return _activated(y, activation)


def _scatter_gemm(x: Any, values: Any, index: Any, perm: Any, bias: Any,
                  out_features: int, activation: str) -> Any:  # fmt: skip
    return _activated(SCATTER(x, values, index, perm, bias, out_features=out_features), activation)


def _shift(x: Any, values: Any, offsets: Any, perm: Any, bias: Any,
           out_features: int, activation: str) -> Any:  # fmt: skip
    sizes = {"in_features": x.shape[-1], "out_features": out_features}
    return _activated(SHIFT(x, values, offsets, perm, bias, **sizes), activation)


def translation_table() -> dict[Callable[..., Any], Callable[..., Any]]:
    """For `torch.onnx.export(custom_translation_table=...)`."""
    ops = torch.ops.padst
    return {
        ops.gather_gemm.default: _gather_gemm,
        ops.scatter_gemm.default: _scatter_gemm,
        ops.shift.default: _shift,
    }
