"""All functions of a kernel module, checked against dense float64 maths."""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from dense_maths import (
    activated,
    assert_sums,
    gather_entries,
    gather_matrix,
    permuted_columns,
    shift_matrix,
    unpermuted_matrix,
)
from torch import Tensor


@dataclass(frozen=True)
class Setting:
    """What every check varies beside the shape."""

    tokens: int = 5
    dtype: torch.dtype = torch.float32
    perm: bool = True
    bias: bool = True
    activation: str = "none"
    layout: str = "rows"
    device: str = "cpu"
    seed: int = 0

    def __str__(self) -> str:
        flags = [name for name in ("perm", "bias") if getattr(self, name)]
        dtype = str(self.dtype).removeprefix("torch.")
        return "-".join([str(self.tokens), dtype, self.activation, self.layout, *flags])


SETTINGS = (
    Setting(),
    Setting(dtype=torch.float64, activation="gelu", layout="columns"),
    Setting(dtype=torch.bfloat16, activation="silu", layout="strided", bias=False),
    Setting(dtype=torch.float16, activation="relu", perm=False),
    Setting(tokens=0),
    Setting(tokens=1, activation="gelu_tanh", layout="strided"),
    Setting(tokens=300, activation="gelu", perm=False, bias=False),
)
# Kernels take other ways for many tokens of 16 bits, and for many behind a permutation.
LONG_BATCHES = (
    Setting(tokens=300, activation="silu", layout="strided"),
    Setting(tokens=261, dtype=torch.bfloat16, activation="gelu"),
    Setting(tokens=70, dtype=torch.float16, activation="relu", layout="columns"),
)


class Inputs:
    """Random tensors of one setting, on its device."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.generator = torch.Generator().manual_seed(setting.seed)

    def normal(self, *shape: int) -> Tensor:
        drawn = torch.randn(shape, generator=self.generator, dtype=torch.float64)
        return drawn.to(self.setting.dtype).to(self.setting.device)

    def activations(self, features: int) -> Tensor:
        tokens = self.setting.tokens
        if self.setting.layout == "columns":
            return self.normal(features, tokens).t()
        if self.setting.layout == "strided":
            return self.normal(2 * tokens, 3 * features)[::2, 1::3]
        return self.normal(tokens, features)

    def bias(self, features: int) -> Tensor:
        return self.normal(features if self.setting.bias else 0)

    def perm(self, features: int) -> Tensor:
        drawn = torch.randperm(features, generator=self.generator).int()
        return (drawn if self.setting.perm else drawn[:0]).to(self.setting.device)

    def subset(self, size: int, count: int) -> Tensor:
        return torch.randperm(size, generator=self.generator)[:count].sort().values


@dataclass(frozen=True)
class Gather:
    """A shape of the gather form; `window` 0 means all features."""

    row_blocks: int
    per_window: int
    group: int
    tile: int
    features: int
    window: int = 0
    index_dtype: torch.dtype = torch.int32

    @property
    def span(self) -> int:
        return self.window or self.features

    def index(self, inputs: Inputs) -> Tensor:
        sizes = [
            min(self.span, self.features - first) // self.group
            for first in range(0, self.features, self.span)
        ]
        rows = [
            torch.cat([inputs.subset(size, self.per_window) for size in sizes])
            for _ in range(self.row_blocks)
        ]
        return torch.stack(rows).to(self.index_dtype).to(inputs.setting.device)

    def cyclic_index(self, inputs: Inputs) -> Tensor:
        """The index of block diagonals: every row the first one moved by one block more."""
        blocks = self.features // self.group
        first = inputs.subset(blocks, self.per_window)
        moved = (first + torch.arange(self.row_blocks)[:, None]) % blocks
        return moved.to(self.index_dtype).to(inputs.setting.device)


GATHERS = {
    "block-4": Gather(3, 2, 4, 4, 20),
    "block-16": Gather(2, 3, 16, 16, 64),
    "block-24": Gather(2, 2, 24, 24, 72),
    "block-80": Gather(1, 2, 80, 80, 160),
    "group-4-tile-20": Gather(2, 3, 4, 20, 20),
    "one-block": Gather(1, 1, 5, 5, 5),
    "diag-wide-8": Gather(3, 2, 8, 8, 40),
    "block-8-many": Gather(2, 7, 8, 8, 88),
    "group-16-tile-24": Gather(2, 3, 16, 24, 80),
    "block-32": Gather(3, 2, 32, 32, 160),
    "nm-2:4": Gather(7, 2, 1, 1, 24, 4, torch.uint8),
    "nm-1:10-short": Gather(9, 1, 1, 1, 34, 10, torch.uint8),
    "nm-3:6-tile-3": Gather(4, 3, 1, 3, 30, 6, torch.uint8),
    "nm-2:8-tile-16": Gather(2, 2, 1, 16, 36, 8, torch.uint8),
    "nm-tile-20": Gather(1, 4, 1, 20, 38, 8, torch.uint8),
    "nm-1:300": Gather(2, 1, 1, 1, 305, 300),
}
SCATTERS = {name: g for name, g in GATHERS.items() if not g.window}
SHIFTS = {"tall": (53, 37), "wide": (37, 53), "square": (29, 29), "thin": (1, 19), "flat": (19, 1)}


def forward_want(
    x: Tensor, matrix: Tensor, perm: Tensor, bias: Tensor, activation: str
) -> tuple[Tensor, Tensor]:
    """The result of a forward in float64, and the sum of its terms' absolute values."""
    weight, wide = unpermuted_matrix(matrix, perm.cpu()), x.cpu().double()
    offset = bias.cpu().double() if bias.numel() else torch.zeros(matrix.shape[0]).double()
    magnitude = wide.abs() @ weight.abs().t() + offset.abs()
    return activated(activation, wide @ weight.t() + offset), magnitude


def check_products(
    inputs: Inputs, perm: Tensor, x: Tensor, grad: Tensor, matrix: Tensor, calls: dict[str, Any]
) -> None:
    """Forward, input gradient and weight gradient of one layer whose dense form is `matrix`."""
    setting = inputs.setting
    bias = inputs.bias(matrix.shape[0])
    want, magnitude = forward_want(x, matrix, perm, bias, setting.activation)
    got = calls["forward"](bias)
    assert got.dtype == x.dtype
    assert_sums(got, want, magnitude, x.shape[1])

    weight, wide_grad = unpermuted_matrix(matrix, perm.cpu()), grad.cpu().double()
    got = calls["input_grad"]()
    assert got.dtype == grad.dtype
    assert_sums(got, wide_grad @ weight, wide_grad.abs() @ weight.abs(), grad.shape[1])

    wide = permuted_columns(x.cpu().double(), perm.cpu())
    entries = calls["entries"]
    got = calls["weight_grad"]()
    assert got.dtype == grad.dtype
    dense, size = wide_grad.t() @ wide, wide_grad.abs().t() @ wide.abs()
    assert_sums(got, entries(dense), entries(size), setting.tokens)


def check_shift(
    module: ModuleType, out: int, inp: int, setting: Setting, diagonals: int = 0
) -> None:
    """The three functions of a shift module."""
    inputs = Inputs(setting)
    count = min(diagonals or 5, max(out, inp))
    offsets = inputs.subset(max(out, inp), count).int().to(setting.device)
    values, perm = inputs.normal(count, min(out, inp)), inputs.perm(inp)
    x, grad = inputs.activations(inp), inputs.activations(out)

    def entries(dense: Tensor) -> Tensor:
        rows = [
            [
                dense[(t + offset) % out, t] if out >= inp else dense[t, (t + offset) % inp]
                for t in range(min(out, inp))
            ]
            for offset in offsets.tolist()
        ]
        return torch.tensor(rows, dtype=torch.float64)

    calls = {
        "forward": lambda bias: module.shift_forward(
            x, values, offsets, perm, bias, out, setting.activation
        ),
        "input_grad": lambda: module.shift_input_grad(grad, values, offsets, perm, inp),
        "weight_grad": lambda: module.shift_weight_grad(grad, x, offsets, perm),
        "entries": entries,
    }
    check_products(inputs, perm, x, grad, shift_matrix(values.cpu(), offsets, out, inp), calls)


def check_gather(module: ModuleType, shape: Gather, setting: Setting) -> None:
    """The three functions of the gather form."""
    inputs = Inputs(setting)
    index, window, group = shape.index(inputs), shape.span, shape.group
    values = inputs.normal(shape.row_blocks, index.shape[1], group, shape.tile)
    perm = inputs.perm(shape.features)
    x, grad = inputs.activations(shape.features), inputs.activations(shape.row_blocks * shape.tile)
    calls = {
        "forward": lambda bias: module.gather_gemm_forward(
            x, values, index, perm, bias, window, setting.activation
        ),
        "input_grad": lambda: module.gather_gemm_input_grad(
            grad, values, index, perm, window, shape.features
        ),
        "weight_grad": lambda: module.gather_gemm_weight_grad(grad, x, index, perm, window, group),
        "entries": lambda dense: gather_entries(dense, index, window, group),
    }
    matrix = gather_matrix(values.cpu(), index, window, shape.features)
    check_products(inputs, perm, x, grad, matrix, calls)


def check_scatter(module: ModuleType, shape: Gather, setting: Setting) -> None:
    """The three functions of the transposed form."""
    inputs = Inputs(setting)
    index, out, group = shape.cyclic_index(inputs), shape.features, shape.group
    values = inputs.normal(shape.row_blocks, index.shape[1], group, shape.tile)
    inp = shape.row_blocks * shape.tile
    perm, x, grad = inputs.perm(inp), inputs.activations(inp), inputs.activations(out)
    calls = {
        "forward": lambda bias: module.scatter_gemm_forward(
            x, values, index, perm, bias, out, setting.activation
        ),
        "input_grad": lambda: module.scatter_gemm_input_grad(grad, values, index, perm),
        "weight_grad": lambda: module.scatter_gemm_weight_grad(grad, x, index, perm, group),
        "entries": lambda dense: gather_entries(dense.t(), index, out, group),
    }
    matrix = gather_matrix(values.cpu(), index, out, out).t()
    check_products(inputs, perm, x, grad, matrix, calls)


class Gradient:
    """A dense gradient in float64 with the error that sums of its entries may carry."""

    def __init__(self, out: int, inp: int, setting: Setting) -> None:
        inputs = Inputs(setting)
        self.tokens = setting.tokens
        self.grad, self.x = inputs.activations(out), inputs.activations(inp)
        self.perm = inputs.perm(inp)
        wide_grad = self.grad.cpu().double()
        wide = permuted_columns(self.x.cpu().double(), self.perm.cpu())
        self.dense = wide_grad.t() @ wide
        self.size = wide_grad.abs().t() @ wide.abs()

    def check(self, got: Tensor, units: list[tuple[list[int], list[int]]]) -> None:
        """`got` holds, in order, the gradient's norms over the units (rows, columns)."""
        wide = torch.float64 if self.grad.dtype == torch.float64 else torch.float32
        assert got.dtype == wide
        norms = [self.dense[rows, columns].norm() for rows, columns in units]
        sizes = [self.size[rows, columns].norm() for rows, columns in units]
        terms = self.tokens + max(len(rows) for rows, _ in units)
        assert_sums(got.flatten(), torch.stack(norms), torch.stack(sizes), terms)


def check_diag_score(
    module: ModuleType, out: int, inp: int, width: int, run: int, setting: Setting
) -> None:
    """One norm per run of block diagonals."""
    gradient = Gradient(out, inp, setting)
    count = max(out, inp) // width
    units = []
    for unit in range(count // run):
        rows, columns = [], []
        for d in range(unit * run, (unit + 1) * run):
            for t in range(min(out, inp) // width):
                block = ((t + d) % count, t) if out >= inp else (t, (t + d) % count)
                for i in range(width):
                    for j in range(width):
                        rows.append(block[0] * width + i)
                        columns.append(block[1] * width + j)
        units.append((rows, columns))
    got = module.diag_growth_score(gradient.grad, gradient.x, gradient.perm, width, run)
    assert got.shape == (count // run,)
    gradient.check(got, units)


def check_block_score(module: ModuleType, out: int, inp: int, size: int, setting: Setting) -> None:
    """One Frobenius norm per block."""
    gradient = Gradient(out, inp, setting)
    units = []
    for first_row in range(0, out, size):
        for first_column in range(0, inp, size):
            inside = [(i, j) for i in range(size) for j in range(size)]
            rows = [first_row + i for i, _ in inside]
            units.append((rows, [first_column + j for _, j in inside]))
    got = module.block_growth_score(gradient.grad, gradient.x, gradient.perm, size)
    assert got.shape == (out // size, inp // size)
    gradient.check(got, units)


def check_weight_score(module: ModuleType, out: int, inp: int, setting: Setting) -> None:
    """One magnitude per weight."""
    gradient = Gradient(out, inp, setting)
    got = module.weight_growth_score(gradient.grad, gradient.x, gradient.perm)
    assert got.shape == (out, inp)
    gradient.check(got, [([i], [j]) for i in range(out) for j in range(inp)])


def check_nm_score(module: ModuleType, shape: Gather, setting: Setting) -> None:
    """The best inactive slots of every group, distinct, in order, with their norms."""
    n, m, windows = shape.per_window, shape.window, math.ceil(shape.features / shape.window)
    gradient = Gradient(shape.row_blocks * shape.tile, shape.features, setting)
    index = shape.index(Inputs(setting))
    keep = min(n, m - n)
    got = module.nm_growth_score(gradient.grad, gradient.x, index, gradient.perm, n, m)
    assert got.shape == (2, shape.row_blocks, windows, keep)
    scores, slots = got.cpu().double().tolist()
    taken = index.cpu().view(shape.row_blocks, windows, n).tolist()
    found, units = [], []
    for r in range(shape.row_blocks):
        rows = list(range(r * shape.tile, (r + 1) * shape.tile))
        for w in range(windows):
            inputs = min(m, shape.features - w * m)
            inactive = set(range(inputs)) - set(taken[r][w])
            exist = min(keep, len(inactive))
            chosen = [int(slot) for slot in slots[r][w][:exist]]
            assert len(set(chosen)) == exist and set(chosen) <= inactive
            assert scores[r][w] == sorted(scores[r][w], reverse=True)
            assert scores[r][w][exist:] == [-1.0] * (keep - exist)
            assert slots[r][w][exist:] == [0.0] * (keep - exist)
            for score, slot in zip(scores[r][w], chosen, strict=False):
                found.append(score)
                units.append((rows, [w * m + slot] * len(rows)))
            if exist and setting.tokens:
                norm = gradient.dense[rows, w * m : w * m + inputs].norm(dim=0)
                left = max((norm[i].item() for i in inactive - set(chosen)), default=0.0)
                assert left <= scores[r][w][exist - 1] * (1 + 1e-4) + 1e-5
    if units:
        gradient.check(torch.tensor(found, dtype=got.dtype), units)
