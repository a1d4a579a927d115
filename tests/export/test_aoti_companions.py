"""The library beside a packaged model that chooses kernels for the processor."""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path

import pytest
import torch

from padst_fx.export.aoti import companions, package
from padst_fx.kernels.native import build, isa
from padst_fx.passes.projection_op import projection_ops

# In place of kernels: each function returns a number that stands for the instruction set.
KERNELS = """
extern "C" int aoti_torch_cpu_shift() { return NUMBER; }
extern "C" int aoti_torch_cpu_gather_gemm() { return NUMBER; }
extern "C" int aoti_torch_cpu_scatter_gemm() { return NUMBER; }
"""
NUMBERS = {name: 10 + number for number, name in enumerate(isa.FLAGS)}


@pytest.fixture
def kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "kernels.cpp"
    source.write_text(KERNELS)

    def library(name: str) -> Path:
        path = tmp_path / f"kernels_{name}.so"
        command = [*build.compiler(), "-shared", "-fPIC", f"-DNUMBER={NUMBERS.get(name, 99)}"]
        subprocess.run([*command, str(source), "-o", str(path)], check=True)
        return path

    monkeypatch.setattr(build, "library", library)


def called(chooser: Path) -> set[int]:
    """What the functions return."""
    loaded = ctypes.CDLL(str(chooser))
    arguments = (*[ctypes.c_void_p()] * 5, ctypes.c_int64(), ctypes.c_void_p(), ctypes.c_void_p())
    names = [f"aoti_torch_cpu_{op._schema.name.partition('::')[2]}" for op in projection_ops()]
    return {getattr(loaded, name)(*arguments) for name in names}


@pytest.mark.usefixtures("kernels")
def test_the_widest_that_runs_is_called(tmp_path: Path) -> None:
    names = list(isa.FLAGS)
    runs = names[: names.index(isa.widest()) + 1]
    (tmp_path / "all").mkdir()
    chooser, *copies = companions.put_companions(tmp_path / "all", names)
    assert [copy.name for copy in copies] == [f"kernels_{n}.so.1" for n in reversed(names)]
    assert called(chooser) == {NUMBERS[runs[-1]]}
    (tmp_path / "one").mkdir()
    assert called(companions.put_companions(tmp_path / "one", ["portable"])[0]) == {10}


@pytest.mark.usefixtures("kernels")
def test_a_processor_that_has_none_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(isa, "FLAGS", {**isa.FLAGS, "avx1024": ()})
    (tmp_path / "one").mkdir()
    chooser, _ = companions.put_companions(tmp_path / "one", ["avx1024"])
    assert called(chooser) == {1}
    problem = "this package has kernels for avx1024, and this processor has none of these"
    assert problem in capfd.readouterr().err


@pytest.mark.usefixtures("kernels")
def test_a_missing_kernel_library_is_named(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "one").mkdir()
    chooser, copy = companions.put_companions(tmp_path / "one", ["portable"])
    copy.unlink()
    assert called(chooser) == {1}
    assert copy.name in capfd.readouterr().err


def test_c_functions_are_declared_as_the_ops_are_defined() -> None:
    assert package._declaration(torch.ops.padst.shift.default) == (
        "AOTITorchError aoti_torch_cpu_shift(AtenTensorHandle x, AtenTensorHandle values, "
        "AtenTensorHandle offsets, AtenTensorHandle perm, AtenTensorHandle bias, "
        "int64_t out_features, const char* activation, AtenTensorHandle* result)"
    )
    schemas = {
        tuple(str(argument.type) for argument in op._schema.arguments) for op in projection_ops()
    }
    assert schemas == {("Tensor",) * 5 + ("int", "str")}
