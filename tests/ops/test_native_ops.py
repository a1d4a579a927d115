"""The C++ kernels behind the ops: layouts, threads, and what is kept between calls."""

from __future__ import annotations

import gc
from dataclasses import dataclass

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
    "diag-runs": padst_fx.Diag(run=8),
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


@pytest.mark.parametrize("tokens", [1, 40])
@pytest.mark.parametrize("name", ["diag", "diag-16", "block-8", "nm"])
def test_numbers_damaged_after_weights_were_packed_are_refused(name: str, tokens: int) -> None:
    sparse, x = layer(name), torch.randn(tokens, 160)
    for _ in range(3):
        sparse(x)
    sparse.index.view(-1)[-1] = 255
    for _ in range(2):
        with pytest.raises(IndexError, match=r"(offsets|index) within \[0, "):
            sparse(x)


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


@dataclass(frozen=True)
class Kept:
    """Calls whose packed form is kept from the second one on."""

    structure: str
    tokens: int
    # How many forms four equal calls make: the first may do without.
    made: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.structure}-{self.tokens}"

    def x(self, sparse: SparseLinear, **options: bool) -> Tensor:
        return torch.randn(self.tokens, sparse.in_features, **options)


# Diagonals of 40 tokens are read as they are stored by a first call, those of 600 are arranged.
KEPT = (
    Kept("nm", 1, (1, 1, 0, 0)),
    Kept("nm", 40, (1, 1, 0, 0)),
    Kept("diag", 40, (0, 1, 0, 0)),
    Kept("diag", 600, (0, 1, 0, 0)),
)
each_kept = pytest.mark.parametrize("kept", KEPT, ids=str)


def packed_count() -> int:
    return torch.ops.padst.packed_count()


def packed_bytes() -> int:
    gc.collect()
    return torch.ops.padst.packed_bytes()


def changed_topology(sparse: SparseLinear) -> Tensor:
    units = sparse.pattern.random_units(torch.Generator().manual_seed(3))
    return sparse.pattern.index_from_units(units)


def check_renewed(kept: Kept, sparse: SparseLinear, call: torch.nn.Module) -> None:
    """Packed weights are kept from the second call on with the same weights."""
    x = kept.x(sparse)

    def count() -> int:
        before = packed_count()
        torch.testing.assert_close(call(x).double(), dense(sparse, x), rtol=1e-4, atol=1e-4)
        return packed_count() - before

    def check() -> None:
        assert tuple(count() for _ in range(4)) == kept.made

    check()
    with torch.no_grad():
        sparse.values.mul_(2)
        check()
        sparse.values.data.mul_(-3)
        check()
        sparse.index.copy_(changed_topology(sparse))
        check()
    optimizer = torch.optim.SGD(sparse.parameters(), lr=0.1)
    call(x).sum().backward()
    optimizer.step()
    check()


@each_kept
def test_packed_weights_are_renewed_when_values_or_topology_change(kept: Kept) -> None:
    sparse = layer(kept.structure)
    check_renewed(kept, sparse, sparse)


@pytest.mark.parametrize("kept", KEPT[1:], ids=str)
def test_packed_input_gradients_are_renewed_when_values_or_topology_change(kept: Kept) -> None:
    sparse = layer(kept.structure)
    operands = sparse.values, sparse.index, sparse.perm
    grad = torch.randn(kept.tokens, sparse.out_features)

    def input_grad() -> Tensor:
        if kept.structure == "diag":
            return torch.ops.padst.shift_input_grad(grad, *operands, sparse.in_features)
        window = sparse.pattern.m
        return torch.ops.padst.gather_gemm_input_grad(grad, *operands, window, sparse.in_features)

    def count() -> int:
        before = packed_count()
        exact = grad.double() @ sparse.dense_weight().double()
        torch.testing.assert_close(input_grad().double(), exact, rtol=1e-4, atol=1e-4)
        return packed_count() - before

    with torch.no_grad():
        assert tuple(count() for _ in range(4)) == kept.made
        sparse.values.mul_(2)
        assert tuple(count() for _ in range(4)) == kept.made
        sparse.index.copy_(changed_topology(sparse))
        assert tuple(count() for _ in range(4)) == kept.made


@pytest.mark.skipif(isa.chosen() != "amx", reason="no tile registers here")
@pytest.mark.parametrize("out", [64, 128, 256], ids=str)
def test_packed_tiles_are_renewed_when_values_or_topology_change(out: int) -> None:
    torch.manual_seed(0)
    sparse = SparseLinear(128, out, padst_fx.Diag(width=32), 0.5).to(torch.bfloat16)
    assert sparse.bias is not None
    x, grad = torch.randn(40, 128).bfloat16(), torch.randn(40, out).bfloat16()
    x.requires_grad_()

    def check() -> None:
        made = []
        for _ in range(4):
            before = packed_count()
            (dx,) = torch.autograd.grad(sparse(x), x, grad)
            exact = grad.double() @ sparse.dense_weight().detach().double()
            torch.testing.assert_close(dx.double(), exact, rtol=0.02, atol=0.02)
            y = sparse(x).double()
            torch.testing.assert_close(y, dense(sparse, x), rtol=0.02, atol=0.02)
            made.append(packed_count() - before)
        # Of a round's forwards the second one makes a form, of input gradients the second round's.
        assert made == [1, 1, 0, 0]

    check()
    with torch.no_grad():
        sparse.values.mul_(0.5)
    check()
    sparse.index.copy_(changed_topology(sparse))
    check()


@pytest.mark.parametrize("name", ["nm", "diag"])
@pytest.mark.parametrize("features", [(96, 160), (160, 96), (120, 120)], ids=str)
def test_packed_forms_of_the_same_weights_are_kept_apart(
    name: str, features: tuple[int, int]
) -> None:
    sparse = layer(name, *features)
    for _ in range(3):
        for tokens in (1, 40, 600):
            x = torch.randn(tokens, sparse.in_features, requires_grad=True)
            y = sparse(x)
            torch.testing.assert_close(y.double(), dense(sparse, x), rtol=1e-4, atol=1e-4)
            grad = torch.randn_like(y)
            (dx,) = torch.autograd.grad(y, x, grad)
            exact = grad.double() @ sparse.dense_weight().double()
            torch.testing.assert_close(dx.double(), exact, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["nm", "diag"])
def test_packed_forms_of_one_storage_in_two_dtypes_are_kept_apart(name: str) -> None:
    sparse = layer(name).to(torch.bfloat16)
    x, absent = torch.randn(40, 160), torch.empty(0)
    with torch.no_grad():
        for _ in range(3):
            for dtype in (torch.bfloat16, torch.float16):
                values, none = sparse.values.view(dtype), absent.to(dtype)
                operands = (sparse.index, sparse.perm, none)
                y = sparse.pattern.linear(x.to(dtype), values, *operands)
                want = sparse.pattern.linear(x.to(dtype), values.clone(), *operands)
                assert torch.equal(y, want)


@each_kept
def test_packed_weights_of_compiled_code(kept: Kept) -> None:
    sparse = layer(kept.structure)
    check_renewed(kept, sparse, torch.compile(sparse, backend="padst"))


@each_kept
def test_packed_weights_under_inference_mode(kept: Kept) -> None:
    sparse = layer(kept.structure)
    x = kept.x(sparse)
    with torch.inference_mode():
        sparse(x), sparse(x)
        before = packed_count()
        sparse(x)
        assert packed_count() == before
    with torch.no_grad():
        sparse.values.mul_(2)
    with torch.inference_mode():
        for made in kept.made:
            before = packed_count()
            y = sparse(x)
            torch.testing.assert_close(y.double(), dense(sparse, x), rtol=1e-4, atol=1e-4)
            assert packed_count() == before + made


@each_kept
def test_weights_made_under_inference_mode_are_packed_in_every_call(kept: Kept) -> None:
    with torch.inference_mode():
        sparse = layer(kept.structure)
        x, before = kept.x(sparse), packed_count()
        for factor in (1, 1, 2):
            sparse.values.mul_(factor)
            torch.testing.assert_close(sparse(x).double(), dense(sparse, x), rtol=1e-4, atol=1e-4)
        assert packed_count() == before


@each_kept
def test_packed_weights_go_with_the_values(kept: Kept) -> None:
    before, sparse = packed_bytes(), layer(kept.structure)
    x = kept.x(sparse)
    sparse(x)
    assert packed_bytes() == before
    sparse(x)
    assert packed_bytes() > before
    del sparse
    assert packed_bytes() == before


@each_kept
def test_training_steps_hold_no_packed_weights(kept: Kept) -> None:
    before, sparse = packed_bytes(), layer(kept.structure)
    optimizer = torch.optim.AdamW(sparse.parameters())
    for _ in range(3):
        sparse(kept.x(sparse, requires_grad=True)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        assert packed_bytes() == before


@pytest.mark.parametrize(("name", "most"), [("diag", 5.5), ("diag-runs", 4.5)])
def test_streams_take_little_more_memory_than_their_values(name: str, most: float) -> None:
    before, sparse = packed_bytes(), layer(name, 768, 768)
    for _ in range(2):
        sparse(torch.randn(40, 768))
    assert 4 < (packed_bytes() - before) / sparse.values.numel() < most
