"""Launches captured in a CUDA graph follow a structure that is updated in place."""

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


def test_shift_follows_new_offsets() -> None:
    x = torch.randn(8, 64, device="cuda")
    values = torch.randn(2, 64, device="cuda")
    offsets = torch.tensor([1, 5], dtype=torch.int32, device="cuda")
    perm, bias = offsets[:0], values[0, :0]
    graph, result = captured(
        lambda: shift.shift_forward(x, values, offsets, perm, bias, 64, "none")
    )
    offsets.copy_(torch.tensor([7, 33], dtype=torch.int32))
    graph.replay()
    want = shift_reference.shift_forward(x, values, offsets, perm, bias, 64, "none")
    torch.testing.assert_close(result, want)


def test_scatter_follows_a_new_index() -> None:
    x = torch.randn(8, 64, device="cuda")
    values = torch.randn(2, 1, 32, 32, device="cuda")
    index = torch.tensor([[0], [1]], dtype=torch.int32, device="cuda")
    perm, bias = index[0, :0], values[0, 0, 0, :0]
    graph, result = captured(
        lambda: gather_gemm.scatter_gemm_forward(x, values, index, perm, bias, 128, "none")
    )
    index.copy_(torch.tensor([[3], [0]], dtype=torch.int32))
    graph.replay()
    want = gather_reference.scatter_gemm_forward(x, values, index, perm, bias, 128, "none")
    torch.testing.assert_close(result, want)
