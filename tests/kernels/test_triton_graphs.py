"""On a device: launches captured in a CUDA graph follow updates in place; results repeat."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from padst_fx.kernels.gather_gemm import reference as gather_reference
from padst_fx.kernels.gather_gemm import triton_launch as gather_gemm
from padst_fx.kernels.shift import reference as shift_reference
from padst_fx.kernels.shift import triton_launch as shift

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def captured(call: Callable[[], Tensor]) -> tuple[torch.cuda.CUDAGraph, Tensor]:
    """A graph of ``call``, warmed up on a side stream, and the tensor it fills."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = call()
    return graph, result


@pytest.mark.parametrize("tokens", [1, 8, 40])
def test_shift_follows_new_offsets_and_a_new_permutation(tokens: int) -> None:
    x = torch.randn(tokens, 64, device="cuda")
    values = torch.randn(2, 64, device="cuda")
    offsets = torch.tensor([1, 5], dtype=torch.int32, device="cuda")
    perm, bias = torch.randperm(64, device="cuda").int(), values[0, :0]

    def forward(module: object = shift) -> Tensor:
        return module.shift_forward(x, values, offsets, perm, bias, 64, "none")  # type: ignore[attr-defined]

    graph, result = captured(forward)
    offsets.copy_(torch.tensor([7, 33], dtype=torch.int32))
    perm.copy_(torch.randperm(64))
    graph.replay()
    torch.testing.assert_close(result, forward(shift_reference))


@pytest.mark.parametrize("width", [4, 32])
def test_scatter_follows_a_new_index(width: int) -> None:
    x = torch.randn(8, 2 * width, device="cuda")
    values = torch.randn(2, 1, width, width, device="cuda")
    index = torch.tensor([[0], [1]], dtype=torch.int32, device="cuda")
    perm, bias, out = index[0, :0], values[0, 0, 0, :0], 4 * width
    graph, result = captured(
        lambda: gather_gemm.scatter_gemm_forward(x, values, index, perm, bias, out, "none")
    )
    index.copy_(torch.tensor([[3], [0]], dtype=torch.int32))
    graph.replay()
    want = gather_reference.scatter_gemm_forward(x, values, index, perm, bias, out, "none")
    torch.testing.assert_close(result, want)


def test_two_of_four_follows_new_values_in_a_graph() -> None:
    x = torch.randn(128, 512, device="cuda").bfloat16()
    values = torch.randn(512, 256, 1, 1, device="cuda").bfloat16()
    index = torch.tensor([0, 3], dtype=torch.uint8, device="cuda").repeat(512, 128)
    perm, bias = torch.empty(0, dtype=torch.int32, device="cuda"), values[0, 0, 0, :0]
    graph, result = captured(
        lambda: gather_gemm.gather_gemm_forward(x, values, index, perm, bias, 4, "none")
    )
    values.mul_(2)
    graph.replay()
    want = gather_reference.gather_gemm_forward(x, values, index, perm, bias, 4, "none")
    torch.testing.assert_close(result, want, rtol=2e-2, atol=2e-1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weight_gradients_repeat_bit_for_bit(dtype: torch.dtype) -> None:
    x, grad = (torch.randn(4096, 128, device="cuda").to(dtype) for _ in range(2))
    offsets = torch.tensor([3, 50], dtype=torch.int32, device="cuda")
    index = torch.tensor([[1], [0]], dtype=torch.int32, device="cuda")
    perm = torch.randperm(128, device="cuda").int()
    for call in (
        lambda: shift.shift_weight_grad(grad, x, offsets, perm),
        lambda: gather_gemm.gather_gemm_weight_grad(grad, x, index, perm, 128, 64),
    ):
        first = call()
        assert all(torch.equal(first, call()) for _ in range(3))
