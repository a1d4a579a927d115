"""The C++ kernels behind the ops: layouts, threads, and what is kept between calls."""

from __future__ import annotations

import gc

import pytest
import torch
from torch import Tensor

import padst_fx
from padst_fx import SparseLinear
from padst_fx.kernels.native import isa, load

pytestmark = pytest.mark.skipif(isa.chosen() == "torch", reason="the C++ kernels are turned off")


@pytest.fixture(autouse=True, scope="module")
def built() -> None:
    assert load.loaded()


STRUCTURES = {
    "diag": padst_fx.Diag(),
    "diag-16": padst_fx.Diag(width=16),
    "block-8": padst_fx.Block(8),
    "nm": padst_fx.NM(1, 10),
    "nm-tile": padst_fx.NM(1, 10, tile=16),
}


def layer(name: str, out: int = 96, inputs: int = 160, **options: object) -> SparseLinear:
    torch.manual_seed(0)
    sparsity = None if name.startswith("nm") else 0.8
    return SparseLinear(inputs, out, STRUCTURES[name], sparsity, permutation="random", **options)


def dense(of: SparseLinear, x: Tensor) -> Tensor:
    assert of.bias is not None
    return x.double() @ of.dense_weight().detach().double().t() + of.bias.detach().double()


@pytest.mark.parametrize("name", STRUCTURES)
def test_any_layout_of_the_input(name: str) -> None:
    sparse = layer(name)
    base = torch.randn(6, 5, 4, 160)
    layouts = {
        "five dimensions": base.unsqueeze(1),
        "transposed": base.transpose(0, 2),
        "features not adjacent": torch.randn(160, 7).t(),
        "expanded": torch.randn(160).expand(9, 160),
        "every other row": torch.randn(10, 160)[::2],
        "a slice of features": torch.randn(5, 200)[:, 20:180],
        "one vector": torch.randn(160),
        "no rows": torch.randn(0, 3, 160),
    }
    for layout, x in layouts.items():
        y = sparse(x)
        assert y.shape == (*x.shape[:-1], 96), layout
        torch.testing.assert_close(y.double(), dense(sparse, x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("tokens", [1, 16, 130])
@pytest.mark.parametrize("name", STRUCTURES)
def test_threads_change_nothing_but_rounding(name: str, tokens: int) -> None:
    sparse, x = layer(name, 192, 320), torch.randn(tokens, 320, requires_grad=True)

    def products() -> tuple[Tensor, ...]:
        y = sparse(x)
        return (y, *torch.autograd.grad(y.square().sum(), (x, sparse.values)))

    before = torch.get_num_threads()
    try:
        results = {}
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results[threads] = products()
            for first, second in zip(results[threads], products(), strict=True):
                assert torch.equal(first, second), f"not deterministic on {threads} threads"
    finally:
        torch.set_num_threads(before)
    for threads in (2, 3):
        for alone, together in zip(results[1], results[threads], strict=True):
            torch.testing.assert_close(alone, together, rtol=1e-4, atol=1e-4)


def test_threads_are_as_many_as_torch_is_told() -> None:
    # Threads add up tokens of their own first, so that sums of more threads round otherwise.
    sparse, x = layer("diag", 192, 320), torch.randn(514, 320)
    before, sums = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            sums += torch.autograd.grad(sparse(x).square().sum(), sparse.values)
    finally:
        torch.set_num_threads(before)
    assert not any(torch.equal(sums[i], sums[j]) for i, j in ((0, 1), (0, 2), (1, 2)))


@pytest.mark.parametrize("name", STRUCTURES)
def test_nan_and_infinity_pass_through(name: str) -> None:
    sparse = layer(name)
    x = torch.randn(20, 160)
    x[3], x[7] = torch.nan, torch.inf
    y = sparse(x)
    assert y[3].isnan().all()
    assert not y[7].isfinite().any()
    rest = [row for row in range(20) if row not in (3, 7)]
    torch.testing.assert_close(y[rest].double(), dense(sparse, x[rest]), rtol=1e-5, atol=1e-5)


def test_operands_of_another_shape_are_named() -> None:
    sparse = layer("diag")
    x, index, perm = torch.randn(2, 160), sparse.index, sparse.perm
    empty = torch.empty(0)
    shift = torch.ops.padst.shift
    with pytest.raises(RuntimeError, match=r"values of shape \[32, 96\], got \[31, 96\]"):
        shift(x, sparse.values[1:], index, perm, empty, 96, "none")
    with pytest.raises(RuntimeError, match="perm of length 0 or 160, got 159"):
        shift(x, sparse.values, index, perm[1:], empty, 96, "none")
    with pytest.raises(RuntimeError, match="bias of length 0 or 96, got 95"):
        shift(x, sparse.values, index, perm, torch.zeros(95), 96, "none")
    with pytest.raises(RuntimeError, match="grad and x with as many rows, got 3 and 2"):
        torch.ops.padst.shift_weight_grad(torch.randn(3, 96), x, index, perm)
    with pytest.raises(ValueError, match=r"none, relu, gelu, gelu_tanh, silu; got 'tanh'"):
        shift(x, sparse.values, index, perm, empty, 96, "tanh")


def damaged(index: Tensor, position: int, number: int) -> Tensor:
    index = index.clone()
    index.view(-1)[position] = number
    return index


def test_numbers_that_would_reach_beyond_the_tensors_are_refused() -> None:
    x = torch.randn(40, 160)
    numbers = {"diag": 160, "diag-16": 10, "block-8": -1, "nm": 10, "nm-tile": 255}
    for name, number in numbers.items():
        sparse = layer(name)
        for tokens in (1, 40):
            index = damaged(sparse.index, -1, number)
            with pytest.raises(IndexError, match=r"(offsets|index) within \[0, "):
                sparse.pattern.linear(x[:tokens], sparse.values, index, sparse.perm, sparse.absent)
            perm = damaged(sparse.perm, 3, 1 << 28)
            with pytest.raises(IndexError, match=r"perm within \[0, 160\)"):
                sparse.pattern.linear(x[:tokens], sparse.values, sparse.index, perm, sparse.absent)


def test_a_slot_beyond_the_short_last_window_is_refused() -> None:
    sparse = SparseLinear(45, 32, padst_fx.NM(1, 10))
    index = damaged(sparse.index, -1, 7)
    with pytest.raises(IndexError, match=r"index within \[0, 5\)"):
        sparse.pattern.linear(torch.randn(3, 45), sparse.values, index, sparse.perm, sparse.absent)


def test_unsorted_offsets_are_refused() -> None:
    values, offsets = torch.randn(3, 64), torch.tensor([40, 3, 17], dtype=torch.int32)
    with pytest.raises(IndexError, match="ascending, distinct offsets"):
        torch.ops.padst.shift(
            torch.randn(40, 64), values, offsets, offsets[:0], torch.empty(0), 64, "none"
        )


@pytest.mark.parametrize("name", STRUCTURES)
def test_a_bias_of_another_dtype_is_refused(name: str) -> None:
    sparse = layer(name)
    with pytest.raises(RuntimeError, match="x and bias of one dtype, got Float and BFloat16"):
        bias = torch.zeros(96, dtype=torch.bfloat16)
        sparse.pattern.linear(torch.randn(2, 160), sparse.values, sparse.index, sparse.perm, bias)


@pytest.mark.parametrize("name", STRUCTURES)
def test_tensors_of_other_devices_and_layouts_are_refused(name: str) -> None:
    sparse, x = layer(name), torch.randn(2, 160)
    with pytest.raises((RuntimeError, NotImplementedError)):
        sparse(x.to_mkldnn())
    with pytest.raises(RuntimeError, match="x and values on one device, got cpu and meta"):
        values = sparse.values.to("meta")
        sparse.pattern.linear(x, values, sparse.index, sparse.perm, sparse.absent)


def test_forward_mode_derivatives_are_refused() -> None:
    sparse, x = layer("block-8"), torch.randn(2, 160)
    with pytest.raises(NotImplementedError, match="forward-mode"):
        torch.func.jvp(sparse, (x,), (torch.ones_like(x),))


# How many forms four equal calls make.
KEPT_FROM_THE_SECOND = [1, 1, 0, 0]


def packed_count() -> int:
    return torch.ops.padst.packed_count()


def check_renewed(sparse: SparseLinear, call: torch.nn.Module) -> None:
    """Packed weights of one token are kept from the second call on with the same weights."""
    x = torch.randn(1, sparse.in_features)

    def count() -> int:
        before = packed_count()
        torch.testing.assert_close(call(x).double(), dense(sparse, x), rtol=1e-4, atol=1e-4)
        return packed_count() - before

    assert [count() for _ in range(4)] == KEPT_FROM_THE_SECOND
    with torch.no_grad():
        sparse.values.mul_(2)
        assert [count() for _ in range(4)] == KEPT_FROM_THE_SECOND
        sparse.values.data.mul_(-3)
        assert [count() for _ in range(4)] == KEPT_FROM_THE_SECOND
        units = sparse.pattern.random_units(torch.Generator().manual_seed(3))
        sparse.index.copy_(sparse.pattern.index_from_units(units))
        assert [count() for _ in range(4)] == KEPT_FROM_THE_SECOND
    optimizer = torch.optim.SGD(sparse.parameters(), lr=0.1)
    call(x).sum().backward()
    optimizer.step()
    assert [count() for _ in range(4)] == KEPT_FROM_THE_SECOND


def test_packed_weights_are_renewed_when_values_or_topology_change() -> None:
    sparse = layer("nm")
    check_renewed(sparse, sparse)


def test_packed_input_gradients_are_renewed_when_values_or_topology_change() -> None:
    sparse = layer("nm")
    index, window, features = sparse.index, sparse.pattern.m, sparse.in_features
    grad = torch.randn(20, sparse.out_features)

    def count() -> int:
        before = packed_count()
        dx = torch.ops.padst.gather_gemm_input_grad(
            grad, sparse.values, index, sparse.perm, window, features
        )
        exact = grad.double() @ sparse.dense_weight().double()
        torch.testing.assert_close(dx.double(), exact, rtol=1e-4, atol=1e-4)
        return packed_count() - before

    with torch.no_grad():
        assert [count() for _ in range(4)] == KEPT_FROM_THE_SECOND
        sparse.values.mul_(2)
        assert [count() for _ in range(4)] == KEPT_FROM_THE_SECOND
        units = sparse.pattern.random_units(torch.Generator().manual_seed(3))
        index.copy_(sparse.pattern.index_from_units(units))
        assert [count() for _ in range(4)] == KEPT_FROM_THE_SECOND


def test_packed_forms_of_the_same_weights_are_kept_apart() -> None:
    sparse = layer("nm")
    for _ in range(3):
        for tokens in (1, 40):
            x = torch.randn(tokens, 160, requires_grad=True)
            y = sparse(x)
            torch.testing.assert_close(y.double(), dense(sparse, x), rtol=1e-4, atol=1e-4)
            grad = torch.randn_like(y)
            (dx,) = torch.autograd.grad(y, x, grad)
            exact = grad.double() @ sparse.dense_weight().double()
            torch.testing.assert_close(dx.double(), exact, rtol=1e-4, atol=1e-4)


def test_packed_weights_of_compiled_code() -> None:
    sparse = layer("nm")
    check_renewed(sparse, torch.compile(sparse, backend="padst"))


def test_packed_weights_under_inference_mode() -> None:
    sparse, x = layer("nm"), torch.randn(1, 160)
    with torch.inference_mode():
        sparse(x), sparse(x)
        before = packed_count()
        sparse(x)
        assert packed_count() == before
    with torch.no_grad():
        sparse.values.mul_(2)
    with torch.inference_mode():
        y = sparse(x)
    torch.testing.assert_close(y.double(), dense(sparse, x), rtol=1e-4, atol=1e-4)
    assert packed_count() == before + 1


def test_weights_made_under_inference_mode_are_packed_in_every_call() -> None:
    with torch.inference_mode():
        sparse, x = layer("nm"), torch.randn(1, 160)
        before = packed_count()
        for factor in (1, 2):
            sparse.values.mul_(factor)
            torch.testing.assert_close(sparse(x).double(), dense(sparse, x), rtol=1e-4, atol=1e-4)
        assert packed_count() == before


def test_packed_weights_go_with_the_values() -> None:
    gc.collect()
    before = torch.ops.padst.packed_bytes()
    sparse = layer("nm")
    sparse(torch.randn(1, 160))
    assert torch.ops.padst.packed_bytes() == before
    sparse(torch.randn(1, 160))
    assert torch.ops.padst.packed_bytes() > before
    del sparse
    gc.collect()
    assert torch.ops.padst.packed_bytes() == before


def test_training_steps_hold_no_packed_weights() -> None:
    gc.collect()
    before = torch.ops.padst.packed_bytes()
    sparse = layer("nm")
    optimizer = torch.optim.AdamW(sparse.parameters())
    for _ in range(3):
        x = torch.randn(40, 160, requires_grad=True)
        sparse(x).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        assert torch.ops.padst.packed_bytes() == before
