"""Every Triton kernel, compiled ahead of time as its launch function would launch it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from padst_fx.kernels.gather_gemm import triton_dense as gather_dense
from padst_fx.kernels.gather_gemm import triton_launch as gather_gemm
from padst_fx.kernels.growth_score import triton_launch as growth_score
from padst_fx.kernels.shift import triton_dense as shift_dense
from padst_fx.kernels.shift import triton_launch as shift
from padst_fx.kernels.triton_ahead_of_time import SHARED_LIMIT, Launch, compiled, recorded

HALF, SINGLE, DOUBLE = torch.bfloat16, torch.float32, torch.float64
Case = Callable[[], Tensor]


def meta(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def index(*shape: int, dtype: torch.dtype = torch.int32) -> Tensor:
    return meta(*shape, dtype=dtype)


def shift_case(
    name: str, tokens: int, out: int, inp: int, dtype: torch.dtype, permuted: bool = True
) -> Case:
    x, grad = meta(tokens, inp, dtype=dtype), meta(tokens, out, dtype=dtype)
    values, offsets = meta(77, min(out, inp), dtype=dtype), index(77)
    perm = index(inp if permuted else 0)
    bias = meta(out, dtype=dtype)
    calls = {
        "forward": lambda: shift.shift_forward(x, values, offsets, perm, bias, out, "gelu"),
        "input_grad": lambda: shift.shift_input_grad(grad, values, offsets, perm, inp),
        "weight_grad": lambda: shift.shift_weight_grad(grad, x, offsets, perm),
    }
    return calls[name]


def gather_case(
    name: str,
    tokens: int,
    shape: tuple[int, int, int, int],
    window: int,
    dtype: torch.dtype,
    features: int = 768,
) -> Case:
    row_blocks, entries, group, tile = shape
    blocked = row_blocks * tile
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
    return calls[name]


def score_case(name: str, width: int, dtype: torch.dtype) -> Case:
    out, inp = 768, 640
    grad, x, perm = meta(512, out, dtype=dtype), meta(512, inp, dtype=dtype), index(inp)
    slots = index(out // width, inp // 10, dtype=torch.uint8)
    calls = {
        "diag": lambda: growth_score.diag_growth_score(grad, x, perm, width, 1),
        "block": lambda: growth_score.block_growth_score(grad, x, perm, width),
        "nm": lambda: growth_score.nm_growth_score(grad, x, slots, perm, 1, 10),
    }
    return calls[name]


BLOCK, NARROW, TILED, FINE = (12, 2, 64, 64), (96, 12, 8, 8), (48, 96, 1, 16), (768, 96, 1, 1)
ONE_ROW_BLOCK = (1, 1, 768, 64)
PRODUCTS = ("forward", "input_grad", "weight_grad")
DOT = {
    **{f"block-{n}-{m}": gather_case(n, m, BLOCK, 768, HALF) for n in PRODUCTS for m in (1, 1024)},
    **{f"block-{n}-single": gather_case(n, 1024, BLOCK, 768, SINGLE) for n in PRODUCTS},
    **{
        f"block-{n}-float16": gather_case(n, 1024, BLOCK, 768, torch.float16)
        for n in ("forward", "weight_grad")
    },
    "block-scatter_forward": gather_case("scatter_forward", 1024, BLOCK, 768, HALF),
    "block-scatter_input_grad": gather_case("scatter_input_grad", 1024, BLOCK, 768, HALF),
    "block-scatter_weight_grad": gather_case("scatter_weight_grad", 1024, BLOCK, 768, HALF),
    "tiled-forward": gather_case("forward", 1024, TILED, 8, HALF),
    "fine-weight_grad": gather_case("weight_grad", 1024, FINE, 8, HALF),
    "shift-weight_grad-1024": shift_case("weight_grad", 1024, 3072, 768, HALF),
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
        for n in PRODUCTS
        for m, o, i in ((1, 768, 3072), (32, 768, 768), (1024, 3072, 768))
        if (n, m) != ("weight_grad", 1024)
    },
    **{f"shift-{n}-float16": shift_case(n, 1024, 768, 768, torch.float16) for n in PRODUCTS[:2]},
    "shift-weight_grad-single": shift_case("weight_grad", 1024, 3072, 768, SINGLE),
    "shift-forward-double": shift_case("forward", 1024, 768, 768, DOUBLE),
    "narrow-forward-1": gather_case("forward", 1, NARROW, 768, HALF),
    "narrow-input_grad": gather_case("input_grad", 1024, NARROW, 768, HALF),
    "fine-forward-1": gather_case("forward", 1, FINE, 8, HALF),
    "fine-forward-32": gather_case("forward", 32, FINE, 8, HALF),
    "fine-forward-1024": gather_case("forward", 1024, FINE, 8, HALF),
    "fine-input_grad-1": gather_case("input_grad", 1, FINE, 8, HALF),
    "fine-input_grad-1024": gather_case("input_grad", 1024, FINE, 8, HALF),
    "fine-weight_grad-16": gather_case("weight_grad", 16, FINE, 8, HALF),
    "fine-weight_grad-single": gather_case("weight_grad", 1024, FINE, 8, SINGLE),
    "one-row-block-weight_grad": gather_case("weight_grad", 1024, ONE_ROW_BLOCK, 768, DOUBLE),
    "score-diag-1-double": score_case("diag", 1, DOUBLE),
    "score-nm-1-double": score_case("nm", 1, DOUBLE),
}

MATRICES: dict[str, Case] = {
    "shift": lambda: shift_dense.matrix(meta(77, 768, dtype=HALF), index(77), 3072, 768),
    "shift-entries": lambda: shift_dense.entries(meta(768, 3072, dtype=HALF), index(77)),
    "narrow": lambda: gather_dense.gathering_matrix(
        meta(*NARROW, dtype=HALF), index(*NARROW[:2]), 768, 768
    ),
    "narrow-scattering": lambda: gather_dense.scattering_matrix(
        meta(*NARROW, dtype=HALF), index(*NARROW[:2]), 768
    ),
    "fine-entries": lambda: gather_dense.entries(
        meta(768, 768, dtype=HALF), index(768, 96, dtype=torch.uint8), 8, 1
    ),
}

WIDE = {
    "shift-forward-1-collect": shift_case("forward", 1, 768, 3072, HALF, permuted=False),
    **{
        f"shift-{n}-{m}-{dtype}": shift_case(n, m, 768, 768, dtype, permuted=False)
        for n in ("forward", "input_grad")
        for m in (16, 1024)
        for dtype in (HALF, SINGLE)
    },
    **{f"block-{n}-{m}": DOT[f"block-{n}-{m}"] for n in PRODUCTS for m in (1, 1024)},
    "tiled-forward": DOT["tiled-forward"],
    "fine-forward-1024": SUM["fine-forward-1024"],
    "fine-input_grad-1024": SUM["fine-input_grad-1024"],
}
# Compiled for the other devices as well.
WIDE_EVERYWHERE = [
    *(f"shift-{n}-1024-{HALF}" for n in ("forward", "input_grad")), "block-forward-1024"
]
MANY = 2**20
LONG = {
    "shift": shift_case("forward", MANY, 4096, 4096, HALF),
    "shift-weight_grad": shift_case("weight_grad", MANY, 4096, 4096, HALF),
    **{
        f"block-{n}": gather_case(n, MANY, (64, 6, 64, 64), 4096, HALF, features=4096)
        for n in PRODUCTS
    },
    "fine": gather_case("forward", MANY, (4096, 512, 1, 1), 8, HALF, features=4096),
}
HELPERS = (
    "copy_kernel",
    "inverse_kernel",
    "sum_parts_kernel",
    "entry_lists_kernel",
    "diagonal_slots_kernel",
)


def main_launch(call: Case) -> Launch:
    """The launch that does the arithmetic, of those that also copy, list or add up."""
    return next(launch for launch in recorded(call) if launch.name not in HELPERS)


@pytest.mark.parametrize("arch", SHARED_LIMIT)
@pytest.mark.parametrize("name", [*DOT, *SUM])
def test_compiles_without_spills_and_within_shared_memory(name: str, arch: int) -> None:
    call = (DOT | SUM)[name]
    for launch in recorded(call):
        binary = compiled(launch, arch)
        assert (binary.stack, binary.local) == (0, 0), f"{launch.name} spills registers"
        assert 0 < binary.registers <= 255
        assert binary.shared <= SHARED_LIMIT[arch]
    if name in DOT and not name.endswith("single"):
        assert compiled(main_launch(call), arch).has_matrix_instructions


@pytest.mark.parametrize("name", MATRICES)
def test_writing_and_reading_a_dense_matrix_compiles_without_spills(name: str) -> None:
    for launch in recorded(MATRICES[name]):
        binary = compiled(launch, 90)
        assert (binary.stack, binary.local) == (0, 0), f"{launch.name} spills registers"


def test_only_general_indices_need_lists() -> None:
    def launches(name: str) -> set[str]:
        return {launch.name for launch in recorded(DOT[name])}

    assert "entry_lists_kernel" in launches("block-input_grad-1024")
    assert "entry_lists_kernel" not in launches("block-scatter_forward")


@pytest.mark.parametrize(
    ("name", "arch"),
    [*((name, 90) for name in WIDE), *((n, arch) for n in WIDE_EVERYWHERE for arch in (80, 100))],
)
def test_reads_and_writes_128_bits_at_a_time(name: str, arch: int) -> None:
    launch = main_launch(WIDE[name])
    binary = compiled(launch, arch)
    assert binary.wide_loads() > 0
    if "1024" in name:
        assert binary.wide_stores() > 0


@pytest.mark.parametrize("name", LONG)
def test_offsets_have_64_bits_where_sizes_ask_for_it(name: str) -> None:
    launch = main_launch(LONG[name])
    assert launch.constants["LONG"]
    assert not main_launch((DOT | SUM)["block-forward-1024"]).constants["LONG"]
    binary = compiled(launch, 90)
    assert (binary.stack, binary.local) == (0, 0)


def test_float32_multiplies_in_tf32_only_where_torch_does() -> None:
    call = DOT["block-forward-single"]
    assert not compiled(main_launch(call), 90).has_matrix_instructions
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    try:
        assert compiled(main_launch(call), 90).has_matrix_instructions
    finally:
        torch.backends.cuda.matmul.fp32_precision = before
