"""2:4 weights for torch's semi-structured matmul: layout, packing, and the product on a device."""

from __future__ import annotations

import gc

import pytest
import torch
from dense_maths import assert_sums, gather_matrix
from torch import Tensor
from torch.sparse._semi_structured_conversions import (
    sparse_semi_structured_from_dense_cutlass,
    sparse_semi_structured_to_dense_cutlass,
)

from padst_fx.kernels.tiles.table import forced
from padst_fx.kernels.two_four import library as two_four_library
from padst_fx.kernels.two_four.layout import dense_weight, fits
from padst_fx.kernels.two_four.library import PackedWeights, is_new

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def two_of_four(rows: int, features: int, tile: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    order = torch.rand(rows // tile, features // 4, 4, generator=generator).argsort(-1)
    index = order[..., :2].sort(-1).values.reshape(rows // tile, -1).to(torch.uint8)
    return torch.randn(*index.shape, 1, tile, generator=generator), index


@pytest.mark.parametrize("tile", [1, 4])
def test_the_dense_matrix_is_that_of_the_structure(tile: int) -> None:
    values, index = two_of_four(32, 64, tile)
    dense = dense_weight(values, index)
    assert torch.equal(dense.double(), gather_matrix(values, index, 4, 64))
    assert (dense.view(32, 16, 4) != 0).sum(-1).max() == 2


def test_torch_compresses_it_without_loss() -> None:
    values, index = two_of_four(64, 128)
    values[3, 5] = 0
    dense = dense_weight(values.half(), index)
    kept, metadata = sparse_semi_structured_from_dense_cutlass(dense)
    assert kept.shape == (64, 64)
    assert torch.equal(sparse_semi_structured_to_dense_cutlass(kept, metadata), dense)


def test_only_two_of_four_in_whole_tiles_fit() -> None:
    values, _ = two_of_four(32, 64)
    assert fits(values, 64)
    assert not fits(values[:, :16], 64)
    assert not fits(values[:24], 64)
    assert not fits(values.view(32, 16, 2, 1), 64)


def test_packed_once_per_change_and_freed_with_the_values() -> None:
    packings: list[int] = []

    def pack(values: Tensor, index: Tensor) -> int:
        packings.append(len(packings))
        return packings[-1]

    values, index = two_of_four(16, 16)
    packed = PackedWeights(pack)
    assert [packed.get(values, index) for _ in range(3)] == [0, 0, 0]
    values.add_(1)
    assert packed.get(values, index) == 1
    index.copy_(index.clone())
    assert [packed.get(values, index) for _ in range(2)] == [2, 2]
    assert packed.get(values, index.clone()) == 3
    del values
    gc.collect()
    assert len(packed) == 0


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("tokens", [64, 100])
def test_equals_dense_maths_on_the_device(tokens: int, dtype: torch.dtype) -> None:
    from padst_fx.kernels.gather_gemm import triton_launch

    values, index = (tensor.cuda() for tensor in two_of_four(256, 512))
    values = values.to(dtype)
    x = torch.randn(tokens, 512, device="cuda", dtype=dtype)
    bias, perm = torch.randn(256, device="cuda", dtype=dtype), torch.randperm(512).int().cuda()
    matrix = gather_matrix(values.cpu(), index.cpu(), 4, 512)
    wide = x.cpu().double()[:, perm.cpu().long()]
    want, magnitude = wide @ matrix.t(), wide.abs() @ matrix.abs().t()
    for library in (1, 0):
        with forced("two_four", {"LIBRARY": library}):
            got, with_bias = (
                triton_launch.gather_gemm_forward(x, values, index, perm, b, 4, "none")
                for b in (bias[:0], bias)
            )
        assert_sums(got, want, magnitude, 512)
        twice_rounded = want + bias.cpu().double()
        torch.testing.assert_close(with_bias.cpu().double(), twice_rounded, rtol=0.02, atol=0.3)


def test_a_call_is_new_once() -> None:
    assert is_new("this test", 1) and not is_new("this test", 1)
    assert is_new("this test", 2)


def test_calls_met_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(two_four_library, "_MET", set())
    monkeypatch.setattr(two_four_library, "_MOST_MET", 3)
    assert all(is_new("bounded", i) for i in range(8))
    assert len(two_four_library._MET) <= 3 and not is_new("bounded", 7)
