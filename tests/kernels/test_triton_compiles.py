"""Every Triton kernel, compiled ahead of time as its launch function would launch it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from ahead_of_time import compiled, recorded
from torch import Tensor

from padst_fx.kernels.gather_gemm import triton_launch as gather_gemm
from padst_fx.kernels.growth_score import triton_launch as growth_score
from padst_fx.kernels.shift import triton_launch as shift

SHARED_LIMIT = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}
MATRIX_INSTRUCTIONS = ("mma.sync", "wgmma.mma_async", "tcgen05.mma")
HALF, SINGLE, DOUBLE = torch.bfloat16, torch.float32, torch.float64
Case = tuple[ModuleType, Callable[[], Tensor]]


def meta(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def index(*shape: int, dtype: torch.dtype = torch.int32) -> Tensor:
    return meta(*shape, dtype=dtype)


def shift_case(name: str, tokens: int, out: int, inp: int, dtype: torch.dtype) -> Case:
    x, grad = meta(tokens, inp, dtype=dtype), meta(tokens, out, dtype=dtype)
    values, offsets, perm = meta(77, min(out, inp), dtype=dtype), index(77), index(inp)
    bias = meta(out, dtype=dtype)
    calls = {
        "forward": lambda: shift.shift_forward(x, values, offsets, perm, bias, out, "gelu"),
        "input_grad": lambda: shift.shift_input_grad(grad, values, offsets, perm, inp),
        "weight_grad": lambda: shift.shift_weight_grad(grad, x, offsets, perm),
    }
    return shift, calls[name]


def gather_case(
    name: str, tokens: int, shape: tuple[int, int, int, int], window: int, dtype: torch.dtype
) -> Case:
    row_blocks, entries, group, tile = shape
    features, blocked = 768, row_blocks * tile
    values = meta(*shape, dtype=dtype)
    slots = index(row_blocks, entries, dtype=torch.int32 if group > 1 else torch.uint8)
    wide, tall = meta(tokens, features, dtype=dtype), meta(tokens, blocked, dtype=dtype)
    perm, other_perm = index(features), index(blocked)
    bias, other_bias = meta(blocked, dtype=dtype), meta(features, dtype=dtype)
    g = gather_gemm
    calls = {
        "forward": lambda: g.gather_gemm_forward(
            wide, values, slots, perm, bias, window, "gelu_tanh"
        ),
        "input_grad": lambda: g.gather_gemm_input_grad(tall, values, slots, perm, window, features),
        "weight_grad": lambda: g.gather_gemm_weight_grad(tall, wide, slots, perm, window, group),
        "scatter_forward": lambda: g.scatter_gemm_forward(
            tall, values, slots, other_perm, other_bias, features, "silu"
        ),
        "scatter_input_grad": lambda: g.scatter_gemm_input_grad(wide, values, slots, other_perm),
        "scatter_weight_grad": lambda: g.scatter_gemm_weight_grad(
            wide, tall, slots, other_perm, group
        ),
    }
    return gather_gemm, calls[name]


def score_case(name: str, width: int, dtype: torch.dtype) -> Case:
    out, inp = 768, 640
    grad, x, perm = meta(512, out, dtype=dtype), meta(512, inp, dtype=dtype), index(inp)
    slots = index(out // width, inp // 10, dtype=torch.uint8)
    calls = {
        "diag": lambda: growth_score.diag_growth_score(grad, x, perm, width, 1),
        "block": lambda: growth_score.block_growth_score(grad, x, perm, width),
        "nm": lambda: growth_score.nm_growth_score(grad, x, slots, perm, 1, 10),
    }
    return growth_score, calls[name]


BLOCK, NARROW, TILED, FINE = (12, 2, 64, 64), (96, 12, 8, 8), (48, 96, 1, 16), (768, 96, 1, 1)
ONE_ROW_BLOCK = (1, 1, 768, 64)
GATHER = ("forward", "input_grad", "weight_grad")
DOT = {
    **{f"block-{n}-{m}": gather_case(n, m, BLOCK, 768, HALF) for n in GATHER for m in (1, 1024)},
    **{f"block-{n}-single": gather_case(n, 1024, BLOCK, 768, SINGLE) for n in GATHER},
    "block-scatter_forward": gather_case("scatter_forward", 1024, BLOCK, 768, HALF),
    "block-scatter_input_grad": gather_case("scatter_input_grad", 1024, BLOCK, 768, HALF),
    "block-scatter_weight_grad": gather_case("scatter_weight_grad", 1024, BLOCK, 768, HALF),
    "tiled-forward": gather_case("forward", 1024, TILED, 8, HALF),
    "tiled-weight_grad": gather_case("weight_grad", 1024, TILED, 8, HALF),
    "one-row-block": gather_case("forward", 1024, ONE_ROW_BLOCK, 768, HALF),
    "score-diag-1": score_case("diag", 1, HALF),
    "score-diag-1-single": score_case("diag", 1, SINGLE),
    "score-diag-64": score_case("diag", 64, HALF),
    "score-block-128": score_case("block", 128, HALF),
    "score-nm-1": score_case("nm", 1, HALF),
    "score-nm-1-single": score_case("nm", 1, SINGLE),
    "score-nm-64": score_case("nm", 64, HALF),
}
SUM = {
    **{
        f"shift-{n}-{m}-{o}x{i}": shift_case(n, m, o, i, HALF)
        for n in GATHER
        for m, o, i in ((1, 768, 3072), (32, 768, 768), (1024, 3072, 768))
    },
    "shift-forward-double": shift_case("forward", 1024, 768, 768, DOUBLE),
    "narrow-forward-1": gather_case("forward", 1, NARROW, 768, HALF),
    "narrow-input_grad": gather_case("input_grad", 1024, NARROW, 768, HALF),
    "fine-forward-1": gather_case("forward", 1, FINE, 8, HALF),
    "fine-forward-32": gather_case("forward", 32, FINE, 8, HALF),
    "fine-forward-1024": gather_case("forward", 1024, FINE, 8, HALF),
    "fine-input_grad-1": gather_case("input_grad", 1, FINE, 8, HALF),
    "fine-input_grad-1024": gather_case("input_grad", 1024, FINE, 8, HALF),
    "fine-weight_grad": gather_case("weight_grad", 1024, FINE, 8, HALF),
    "one-row-block-weight_grad": gather_case("weight_grad", 1024, ONE_ROW_BLOCK, 768, DOUBLE),
    "score-diag-1-double": score_case("diag", 1, DOUBLE),
    "score-nm-1-double": score_case("nm", 1, DOUBLE),
}


@pytest.mark.parametrize("arch", SHARED_LIMIT)
@pytest.mark.parametrize("name", [*DOT, *SUM])
def test_compiles_without_spills_and_within_shared_memory(
    name: str, arch: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    module, call = (DOT | SUM)[name]
    launches = recorded(monkeypatch, module, call)
    assert len(launches) == 1
    binary = compiled(launches[0], arch, tmp_path)
    assert (binary.stack, binary.local) == (0, 0), "spilled registers"
    assert 0 < binary.registers <= 255
    assert binary.shared <= SHARED_LIMIT[arch]
    if name in DOT and not name.endswith("single"):
        assert any(instruction in binary.ptx for instruction in MATRIX_INSTRUCTIONS)
