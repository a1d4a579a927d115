"""Gather-GEMM and scatter-GEMM on the CPU, against dense float64 maths."""

from __future__ import annotations

from types import ModuleType

import native
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_checks import (
    GATHERS,
    LONG_BATCHES,
    SCATTERS,
    SETTINGS,
    Gather,
    Setting,
    check_gather,
    check_scatter,
)

from padst_fx.kernels.gather_gemm import cpu, reference

EMPTY = torch.empty(0)
NO_PERM = torch.empty(0, dtype=torch.int32)


@pytest.mark.parametrize("module", [reference, cpu, native])
@pytest.mark.parametrize("shape", GATHERS)
@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_gather_equals_dense_maths(module: ModuleType, shape: str, setting: Setting) -> None:
    check_gather(module, GATHERS[shape], setting)


@pytest.mark.parametrize("module", [reference, cpu, native])
@pytest.mark.parametrize("shape", SCATTERS)
@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_scatter_equals_dense_maths(module: ModuleType, shape: str, setting: Setting) -> None:
    check_scatter(module, SCATTERS[shape], setting)


@pytest.mark.native
@pytest.mark.parametrize("shape", GATHERS)
@pytest.mark.parametrize("setting", LONG_BATCHES, ids=str)
def test_many_tokens(shape: str, setting: Setting) -> None:
    check_gather(native, GATHERS[shape], setting)
    if shape in SCATTERS:
        check_scatter(native, SCATTERS[shape], setting)


# Rows of single entries: windows that one register holds, two, and none; many rows and columns.
WINDOWS = {
    "many-rows-and-columns": Gather(531, 1, 1, 1, 525, 10, torch.uint8),
    "two-registers": Gather(37, 2, 1, 1, 75, 24, torch.uint8),
    "full-registers": Gather(33, 3, 1, 1, 64, 32, torch.uint8),
    "wide-index": Gather(18, 1, 1, 1, 100, 16),
    "no-lookup": Gather(18, 2, 1, 1, 100, 40, torch.uint8),
}


@pytest.mark.native
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("tokens", [1, 17, 261])
@pytest.mark.parametrize("shape", WINDOWS)
def test_single_entries_of_many_windows(shape: str, tokens: int, dtype: torch.dtype) -> None:
    check_gather(native, WINDOWS[shape], Setting(tokens=tokens, dtype=dtype))


@pytest.mark.native
@settings(max_examples=40, deadline=None)
@given(data=st.data(), tokens=st.integers(0, 5), seed=st.integers(0, 1000))
def test_any_blocks(data: st.DataObject, tokens: int, seed: int) -> None:
    group, tile = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 6))
    columns = data.draw(st.integers(1, 6))
    entries = data.draw(st.integers(1, columns))
    shape = Gather(data.draw(st.integers(1, 5)), entries, group, tile, columns * group)
    for module in (reference, cpu, native):
        check_gather(module, shape, Setting(tokens=tokens, seed=seed))
        check_scatter(module, shape, Setting(tokens=tokens, seed=seed))


@pytest.mark.native
@settings(max_examples=40, deadline=None)
@given(data=st.data(), tokens=st.integers(0, 5), seed=st.integers(0, 1000))
def test_any_n_of_m(data: st.DataObject, tokens: int, seed: int) -> None:
    m = data.draw(st.integers(1, 9))
    last = data.draw(st.integers(1, m))
    n = data.draw(st.integers(1, last))
    features = m * data.draw(st.integers(0, 3)) + last
    tile = data.draw(st.integers(1, 4))
    shape = Gather(data.draw(st.integers(1, 5)), n, 1, tile, features, m, torch.uint8)
    for module in (reference, cpu, native):
        check_gather(module, shape, Setting(tokens=tokens, seed=seed))


@pytest.mark.parametrize("chunk", [1, 40])
def test_chunks_of_row_blocks_change_nothing(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "WORKSPACE", chunk)
    check_gather(cpu, GATHERS["nm-2:4"], Setting(tokens=2))
    check_scatter(cpu, GATHERS["block-4"], Setting(tokens=2))


@pytest.mark.parametrize("module", [reference, cpu, native])
def test_one_of_two_by_hand(module: ModuleType) -> None:
    # S = [[0, 1, 2, 0], [3, 0, 0, 4]]: one of every two inputs.
    values = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).view(2, 2, 1, 1)
    index = torch.tensor([[1, 0], [0, 1]], dtype=torch.uint8)
    x, grad = torch.tensor([[1.0, 10.0, 100.0, 1000.0]]), torch.tensor([[1.0, 10.0]])
    got = module.gather_gemm_forward(x, values, index, NO_PERM, EMPTY, 2, "none")
    assert got.tolist() == [[210.0, 4003.0]]
    got = module.gather_gemm_input_grad(grad, values, index, NO_PERM, 2, 4)
    assert got.tolist() == [[30.0, 1.0, 2.0, 40.0]]
    got = module.gather_gemm_weight_grad(grad, x, index, NO_PERM, 2, 1)
    assert got.view(2, 2).tolist() == [[10.0, 100.0], [10.0, 10000.0]]


@pytest.mark.parametrize("module", [reference, cpu, native])
def test_scatter_leaves_uncovered_outputs_with_their_bias(module: ModuleType) -> None:
    # One block [[1, 2], [3, 4]] (outputs down, inputs across) on outputs 2 and 3 of 4.
    values = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).view(1, 1, 2, 2)
    index = torch.tensor([[1]], dtype=torch.int32)
    x, bias = torch.tensor([[1.0, 10.0]]), torch.tensor([5.0, -6.0, 0.0, 1.0])
    got = module.scatter_gemm_forward(x, values, index, NO_PERM, bias, 4, "none")
    assert got.tolist() == [[5.0, -6.0, 21.0, 44.0]]


@pytest.mark.parametrize("module", [reference, cpu, native])
@pytest.mark.parametrize("form", ["gather", "scatter"])
def test_unknown_activation_is_refused(module: ModuleType, form: str) -> None:
    forward = getattr(module, f"{form}_gemm_forward")
    index = torch.zeros(1, 1, dtype=torch.int32)
    with pytest.raises(ValueError, match="activation must be one of"):
        forward(torch.ones(1, 2), torch.ones(1, 1, 2, 2), index, NO_PERM, EMPTY, 2, "tanh")
