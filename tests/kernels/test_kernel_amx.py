"""The products on tile registers, emulated in software, against dense float64 maths."""

from __future__ import annotations

import ctypes
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from kernel_checks import Gather, Inputs, Setting, check_gather, check_scatter
from torch import Tensor

from padst_fx.kernels.gather_gemm import cpu
from padst_fx.kernels.native import build, isa

ACTIVATIONS = ("none", "relu", "gelu", "gelu_tanh", "silu")
WRAPPER = Path(__file__).parent.parent / "native" / "tile_products.cpp"
SOURCES = (WRAPPER, build.KERNELS / "gather_gemm" / "cpu.cpp")
THREADS = "3"


def pointer(tensor: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr() if tensor.numel() else None)


def in_wider_rows(x: Tensor) -> Tensor:
    """`x` as rows that are not adjacent, with NaN between them."""
    rows = torch.full((x.shape[0], x.shape[1] + 8), torch.nan, dtype=x.dtype)
    rows[:, : x.shape[1]] = x
    return rows


class EmulatedTiles:
    """The functions of a kernel module in a library whose tile registers are software."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self.library = library
        # The weight gradient takes no tiles.
        self.gather_gemm_weight_grad = cpu.gather_gemm_weight_grad
        self.scatter_gemm_weight_grad = cpu.scatter_gemm_weight_grad

    def call(
        self,
        name: str,
        x: Tensor,
        values: Tensor,
        index: Tensor,
        perm: Tensor,
        window: int,
        indexed_features: int,
        out_features: int,
        bias: Tensor | None = None,
        activation: str = "none",
    ) -> Tensor:
        sizes = (x.shape[0], indexed_features, *values.shape, window)
        shape = (ctypes.c_int64 * len(sizes))(*sizes)
        assert self.library.uses_tiles(shape)
        rows = in_wider_rows(x)

        def result(packs: bool) -> Tensor:
            out = torch.full((x.shape[0], out_features), torch.nan, dtype=x.dtype)
            getattr(self.library, name)(
                pointer(rows),
                ctypes.c_int64(rows.stride(0)),
                pointer(values),
                pointer(index),
                pointer(perm),
                pointer(bias) if bias is not None else None,
                ACTIVATIONS.index(activation),
                pointer(out),
                shape,
                ctypes.c_int(packs),
            )
            return out

        out = result(packs=False)
        assert torch.equal(out.view(torch.int16), result(packs=True).view(torch.int16))
        return out

    def gather_gemm_forward(
        self,
        x: Tensor,
        values: Tensor,
        index: Tensor,
        perm: Tensor,
        bias: Tensor,
        window: int,
        activation: str,
    ) -> Tensor:
        out = values.shape[0] * values.shape[3]
        sizes = (window, x.shape[1], out)
        return self.call("gather_forward", x, values, index, perm, *sizes, bias, activation)

    def gather_gemm_input_grad(
        self,
        grad: Tensor,
        values: Tensor,
        index: Tensor,
        perm: Tensor,
        window: int,
        features: int,
    ) -> Tensor:
        sizes = (window, features, features)
        return self.call("gather_input_grad", grad, values, index, perm, *sizes)

    def scatter_gemm_forward(
        self,
        x: Tensor,
        values: Tensor,
        index: Tensor,
        perm: Tensor,
        bias: Tensor,
        out: int,
        activation: str,
    ) -> Tensor:
        sizes = (out, out, out)
        return self.call("scatter_forward", x, values, index, perm, *sizes, bias, activation)

    def scatter_gemm_input_grad(
        self, grad: Tensor, values: Tensor, index: Tensor, perm: Tensor
    ) -> Tensor:
        features = grad.shape[1]
        sizes = (features, features, values.shape[0] * values.shape[3])
        return self.call("scatter_input_grad", grad, values, index, perm, *sizes)


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    path = tmp_path_factory.mktemp("tiles") / "tiles.so"
    flags = [*build.COMMON_FLAGS, *isa.FLAGS[isa.widest()], "-O0", "-I", str(build.KERNELS)]
    defines = ["-DPADST_EMULATE_AMX", "-DPADST_STD_THREADS"]
    command = [*build.compiler(), *flags, *defines, *map(str, SOURCES), "-shared", "-o"]
    done = subprocess.run([*command, str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return ctypes.CDLL(str(path))


@pytest.fixture
def tiles(library: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch) -> EmulatedTiles:
    monkeypatch.setenv("OMP_NUM_THREADS", THREADS)
    return EmulatedTiles(library)


class Diagonal(Gather):
    """Whole block diagonals: row block r holds the columns (r + offset) mod their number."""

    def index(self, inputs: Inputs) -> Tensor:
        columns = self.features // self.group
        offsets = torch.arange(self.per_window) * 2 + 1
        return ((torch.arange(self.row_blocks)[:, None] + offsets) % columns).int()


SHAPES = {
    "block-32": Gather(3, 2, 32, 32, 160),
    "block-64": Gather(3, 2, 64, 64, 256),
    "block-96": Gather(2, 1, 96, 96, 192),
    "group-64-tile-32": Gather(3, 2, 64, 32, 192),
    "diag-32": Diagonal(4, 3, 32, 32, 224),
}
Check = Callable[[EmulatedTiles, Gather, Setting], None]
TOKENS = (16, 17, 33, 197)


def setting(tokens: int, perm: bool, bias: bool, activation: str) -> Setting:
    return Setting(tokens, torch.bfloat16, perm, bias, activation)


@pytest.mark.parametrize("check", [check_gather, check_scatter])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize("perm", [False, True])
def test_tiles_equal_dense_maths(
    tiles: EmulatedTiles, check: Check, shape: str, tokens: int, perm: bool
) -> None:
    check(tiles, SHAPES[shape], setting(tokens, perm, False, "none"))


@pytest.mark.parametrize("check", [check_gather, check_scatter])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_epilogues(tiles: EmulatedTiles, check: Check, activation: str) -> None:
    for shape in SHAPES.values():
        check(tiles, shape, setting(33, True, True, activation))


@pytest.mark.parametrize("check", [check_gather])
def test_several_windows(tiles: EmulatedTiles, check: Check) -> None:
    check(tiles, Gather(2, 1, 32, 32, 256, 128), setting(37, True, True, "silu"))


@pytest.mark.parametrize("check", [check_gather, check_scatter])
def test_more_tokens_than_one_step(tiles: EmulatedTiles, check: Check) -> None:
    check(tiles, Gather(1, 2, 32, 32, 512), setting(4113, True, True, "relu"))
    check(tiles, Gather(16, 1, 32, 32, 64), setting(4113, True, True, "relu"))


@pytest.mark.parametrize("row", [0, 15, 16, 32])
def test_not_a_number_stays_in_its_token(tiles: EmulatedTiles, row: int) -> None:
    x = torch.ones(33, 64, dtype=torch.bfloat16)
    x[row, 40] = torch.nan
    values = torch.ones(2, 1, 32, 32, dtype=torch.bfloat16)
    index = torch.tensor([[1], [0]], dtype=torch.int32)
    none = torch.empty(0)
    y = tiles.gather_gemm_forward(x, values, index, none, none, 64, "relu")
    want = torch.full((33, 64), 32.0, dtype=torch.bfloat16)
    want[row, :32] = torch.nan
    torch.testing.assert_close(y, want, equal_nan=True)
