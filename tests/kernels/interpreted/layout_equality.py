"""The Triton kernels that copy, list and add up; offsets beyond 32 bits; tiles of every size."""

from __future__ import annotations

from itertools import islice

import pytest
import torch
from kernel_checks import GATHERS, SHIFTS, Gather, Inputs, Setting, check_gather, check_shift
from torch import Tensor
from triton_device import DEVICE, own_kernels, poisoned_memory

from padst_fx.kernels import triton_layout
from padst_fx.kernels.gather_gemm import triton_launch as gather_gemm
from padst_fx.kernels.gather_gemm.columns import first_columns
from padst_fx.kernels.shift import triton_launch as shift
from padst_fx.kernels.tiles import table
from padst_fx.kernels.tiles.candidates import candidates
from padst_fx.kernels.tiles.problem import Problem, Tiles

__all__ = ["own_kernels", "poisoned_memory"]

BEYOND = 2**31 + 16


def perm_of(features: int) -> Tensor:
    return torch.randperm(features, generator=torch.Generator().manual_seed(1)).int().to(DEVICE)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("tokens", [1, 17, 40])
def test_token_lanes_are_permuted_and_padded_with_zeros(tokens: int, dtype: torch.dtype) -> None:
    source = torch.randn(2 * tokens, 150, device=DEVICE).to(dtype)[::2, ::2]
    perm = perm_of(75)
    lanes = triton_layout.token_lanes(source, perm)
    assert lanes.shape[0] % 16 == 0 and lanes.stride(0) == 1
    assert torch.equal(lanes[:tokens], source[:, perm.long()])
    assert not lanes[tokens:].any()


def test_unpermuted_undoes_a_permutation() -> None:
    source, perm = torch.randn(20, 75, device=DEVICE), perm_of(75)
    permuted = triton_layout.permuted_rows(source, perm)
    assert torch.equal(permuted, source[:, perm.long()])
    assert torch.equal(triton_layout.unpermuted(permuted, perm), source)


def test_parts_are_added_in_order_and_rounded_once() -> None:
    parts = torch.tensor([[1.0, 2.0**24], [2.0**-9, 1.0], [2.0**-9, 1.0]], device=DEVICE)
    got = triton_layout.sum_parts(parts, torch.bfloat16)
    assert got.tolist() == [torch.tensor(1 + 2.0**-8).bfloat16().item(), 2.0**24]


@pytest.mark.parametrize("name", ["block-4", "nm-2:4", "nm-1:10-short", "nm-3:6-tile-3", "many"])
def test_entries_are_listed_as_a_stable_sort_would(name: str) -> None:
    shape = GATHERS.get(name) or Gather(40, 5, 1, 1, 140)
    index = shape.index(Inputs(Setting(device=DEVICE)))
    order, starts = gather_gemm.entry_lists(index, shape.group, shape.span, shape.features)
    blocks = (
        first_columns(index, shape.group, shape.span, shape.features) // shape.group
    ).flatten()
    ordered, want = blocks.sort(stable=True)
    assert torch.equal(order.long(), want)
    count = torch.arange(shape.features // shape.group + 1, device=DEVICE)
    assert torch.equal(starts.long(), torch.searchsorted(ordered, count))


def far_apart(rows: int, features: int) -> Tensor:
    """A matrix whose last row starts beyond 32 bits; only the pages that are used take memory."""
    stride = BEYOND // (rows - 1)
    storage = torch.UntypedStorage(2 * (BEYOND + rows + features), device=DEVICE)
    flat = torch.tensor([], dtype=torch.float16, device=DEVICE).set_(storage)
    matrix = flat.as_strided((rows, features), (stride, 1))
    return matrix.copy_(torch.randn(rows, features))


def test_rows_beyond_32_bits() -> None:
    far = far_apart(3, 20)
    near, empty = far.clone(), torch.zeros(0, dtype=torch.int32, device=DEVICE)
    bias = torch.zeros(0, dtype=torch.float16, device=DEVICE)
    offsets = torch.tensor([0, 3, 7], dtype=torch.int32, device=DEVICE)
    values = torch.randn(3, 20, device=DEVICE).half()
    got, want = (
        shift.shift_forward(x, values, offsets, empty, bias, 20, "none") for x in (far, near)
    )
    assert torch.equal(got, want)
    got, want = (shift.shift_weight_grad(near, x, offsets, empty) for x in (far, near))
    assert torch.equal(got, want)
    index = torch.tensor([[0], [1]], dtype=torch.int32, device=DEVICE)
    block = torch.randn(2, 1, 10, 20, device=DEVICE).half()
    got, want = (
        gather_gemm.gather_gemm_forward(x, block, index, empty, bias, 20, "none")
        for x in (far, near)
    )
    assert torch.equal(got, want)


SHIFT_SUMS = candidates(Problem("shift_product", torch.float32, 20, (53, 5)))
GATHER_DOTS = candidates(Problem("gather_dot", torch.float32, 20, (2, 16, 16, 48)))


@pytest.mark.parametrize("tiles", list(islice(SHIFT_SUMS, 1, None, 6)), ids=str)
def test_any_tile_of_a_sum_gives_the_product(tiles: Tiles) -> None:
    with table.forced("shift_product", tiles):
        check_shift(shift, *SHIFTS["tall"], Setting(tokens=20, device=DEVICE))


@pytest.mark.parametrize("tiles", list(islice(GATHER_DOTS, 1, None, 6)), ids=str)
def test_any_tile_of_a_dot_gives_the_product(tiles: Tiles) -> None:
    with table.forced("gather_dot", tiles):
        check_gather(gather_gemm, GATHERS["block-16"], Setting(tokens=20, device=DEVICE))
