"""Width-1 wrapped diagonals on the CPU, against dense float64 maths."""

from __future__ import annotations

from types import ModuleType

import native
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_checks import LONG_BATCHES, SETTINGS, SHIFTS, Inputs, Setting, check_shift
from torch import Tensor

from padst_fx.kernels.shift import cpu, reference

EMPTY = torch.empty(0)
NO_PERM = torch.empty(0, dtype=torch.int32)


@pytest.mark.parametrize("module", [reference, cpu, native])
@pytest.mark.parametrize("shape", SHIFTS)
@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_equals_dense_maths(module: ModuleType, shape: str, setting: Setting) -> None:
    check_shift(module, *SHIFTS[shape], setting)


@pytest.mark.native
@pytest.mark.parametrize("shape", SHIFTS)
@pytest.mark.parametrize("setting", LONG_BATCHES, ids=str)
def test_many_tokens(shape: str, setting: Setting) -> None:
    check_shift(native, *SHIFTS[shape], setting, diagonals=17)


@pytest.mark.native
@settings(max_examples=40, deadline=None)
@given(
    out=st.integers(1, 24),
    inp=st.integers(1, 24),
    diagonals=st.integers(1, 24),
    tokens=st.integers(0, 6),
    seed=st.integers(0, 1000),
)
def test_any_shape(out: int, inp: int, diagonals: int, tokens: int, seed: int) -> None:
    for module in (reference, cpu, native):
        check_shift(module, out, inp, Setting(tokens=tokens, seed=seed), diagonals)


@pytest.mark.parametrize("module", [reference, cpu, native])
def test_all_diagonals_are_the_dense_layer(module: ModuleType) -> None:
    check_shift(module, 6, 9, Setting(), diagonals=9)


@pytest.mark.native
@pytest.mark.parametrize("shape", [(40, 36, 34), (20, 300, 270), (300, 20, 270), (70, 70, 70)])
@pytest.mark.parametrize("tokens", [33, 70, 230])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_diagonals_with_neighbouring_offsets(
    shape: tuple[int, int, int], tokens: int, dtype: torch.dtype
) -> None:
    out, inp, diagonals = shape
    check_shift(native, out, inp, Setting(tokens=tokens, dtype=dtype), diagonals)


def offsets_in_runs(longer: int, lengths: list[int]) -> Tensor:
    """Runs of neighbouring offsets, of the lengths in turn, a few offsets between them."""
    starts = range(0, longer, 19)
    runs = [torch.arange(at, at + lengths[i % len(lengths)]) for i, at in enumerate(starts)]
    offsets = torch.cat(runs)
    return offsets[offsets < longer].int()


@pytest.mark.native
@pytest.mark.parametrize("shape", [(67, 67), (1103, 131), (131, 1103)], ids=str)
@pytest.mark.parametrize("lengths", [[1, 1], [4], [8], [1, 8, 5, 1, 13, 4]], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_results_do_not_depend_on_how_values_are_read(
    shape: tuple[int, int], lengths: list[int], dtype: torch.dtype
) -> None:
    out, inp = shape
    offsets = offsets_in_runs(max(shape), lengths)
    before = torch.get_num_threads()
    try:
        for tokens, perm in ((13, False), (45, True), (200, False)):
            inputs = Inputs(Setting(tokens=tokens, dtype=dtype, perm=perm, seed=tokens))
            order, values = inputs.perm(inp), inputs.normal(len(offsets), min(shape))
            x, grad, bias = inputs.activations(inp), inputs.activations(out), inputs.bias(out)
            results, made = [], []
            # One thread arranges values where several read them as they are stored.
            for threads in (1, 8):
                torch.set_num_threads(threads)
                own = values.clone()
                for _ in range(3):
                    count = torch.ops.padst.packed_count()
                    y = native.shift_forward(x, own, offsets, order, bias, out, "none")
                    results.append((y, native.shift_input_grad(grad, own, offsets, order, inp)))
                    made.append(torch.ops.padst.packed_count() - count)
            assert made == 2 * [0, 2, 0]
            for result in results[1:]:
                assert all(map(torch.equal, result, results[0]))
    finally:
        torch.set_num_threads(before)


@pytest.mark.native
@pytest.mark.parametrize("shape", [(20, 2300), (2300, 20)])
def test_few_tokens_with_far_offsets(shape: tuple[int, int]) -> None:
    check_shift(native, *shape, Setting(tokens=4), diagonals=9)


@pytest.mark.native
def test_what_was_in_working_memory_is_not_read() -> None:
    # The first results of diagonal 63 lie before its first source: as far as a group reaches.
    offsets, values = torch.tensor([0, 63], dtype=torch.int32), torch.ones(2, 100)
    for tokens in (2**power for power in range(1, 10)):
        short, long = torch.full((tokens, 100), torch.nan), torch.full((tokens, 256), torch.nan)
        assert native.shift_weight_grad(long, short, offsets, NO_PERM).isnan().all()
    x, want = torch.ones(1, 100), torch.zeros(1, 256)
    want[:, :100] += 1
    want[:, 63:163] += 1
    assert native.shift_forward(x, values, offsets, NO_PERM, EMPTY, 256, "none").equal(want)
    assert native.shift_input_grad(x, values, offsets, NO_PERM, 256).equal(want)


@pytest.mark.parametrize("module", [reference, cpu, native])
def test_tall_by_hand(module: ModuleType) -> None:
    # S = [[0, 2], [0, 0], [1, 0]]: diagonal 2, entry t at ((t + 2) % 3, t).
    values, offsets = torch.tensor([[1.0, 2.0]]), torch.tensor([2], dtype=torch.int32)
    x = torch.tensor([[10.0, 20.0]])
    got = module.shift_forward(x, values, offsets, NO_PERM, EMPTY, 3, "none")
    assert got.tolist() == [[40.0, 0.0, 10.0]]
    grad = torch.tensor([[3.0, 5.0, 7.0]])
    assert module.shift_input_grad(grad, values, offsets, NO_PERM, 2).tolist() == [[7.0, 6.0]]
    assert module.shift_weight_grad(grad, x, offsets, NO_PERM).tolist() == [[70.0, 60.0]]


@pytest.mark.parametrize("module", [reference, cpu, native])
def test_wide_by_hand(module: ModuleType) -> None:
    # S = [[0, 0, 1], [2, 0, 0]]: diagonal 2, entry t at (t, (t + 2) % 3); Pi x = (30, 10, 20).
    values, offsets = torch.tensor([[1.0, 2.0]]), torch.tensor([2], dtype=torch.int32)
    x, perm = torch.tensor([[10.0, 20.0, 30.0]]), torch.tensor([2, 0, 1], dtype=torch.int32)
    bias = torch.tensor([1.0, -100.0])
    got = module.shift_forward(x, values, offsets, perm, bias, 2, "relu")
    assert got.tolist() == [[21.0, 0.0]]
    grad = torch.tensor([[3.0, 5.0]])
    assert module.shift_input_grad(grad, values, offsets, perm, 3).tolist() == [[0.0, 3.0, 10.0]]
    assert module.shift_weight_grad(grad, x, offsets, perm).tolist() == [[60.0, 150.0]]


@pytest.mark.parametrize("module", [reference, cpu, native])
def test_unknown_activation_lists_the_known(module: ModuleType) -> None:
    with pytest.raises(ValueError, match=r"none, relu, gelu, gelu_tanh, silu.*'swish'"):
        module.shift_forward(
            torch.ones(1, 2), torch.ones(1, 2), NO_PERM.new_zeros(1), NO_PERM, EMPTY, 2, "swish"
        )
