"""Building and loading the C++ kernels: once per sources, one builder, and torch without one."""

from __future__ import annotations

import stat
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from deployment import run_python

from padst_fx.kernels.native import build, isa, load

COMPILER = """#!/bin/sh
echo "$@" >> "$COMPILER_LOG"
sleep 0.1
while [ "$1" != "-o" ]; do shift; done
echo built > "$2"
"""


@pytest.fixture
def fake_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A compiler that writes down how it was called; returns that log."""
    script, log = tmp_path / "fake-c++", tmp_path / "log"
    script.write_text(COMPILER)
    script.chmod(script.stat().st_mode | stat.S_IEXEC)
    log.touch()
    monkeypatch.setenv("CXX", str(script))
    monkeypatch.setenv("COMPILER_LOG", str(log))
    monkeypatch.setenv("PADST_FX_CACHE", str(tmp_path / "cache"))
    return log


def commands(log: Path) -> list[str]:
    return log.read_text().splitlines()


def test_a_library_is_built_once(fake_compiler: Path) -> None:
    path = build.library("portable")
    assert path.read_text() == "built\n"
    assert len(commands(fake_compiler)) == len(build.sources()) + 1
    assert build.library("portable") == path
    assert len(commands(fake_compiler)) == len(build.sources()) + 1
    assert [file for file in path.parent.iterdir() if file.suffix == ".o"] == []


def test_flags_and_instruction_set_are_part_of_the_name(
    fake_compiler: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = {build.library("portable"), build.library("avx2")}
    assert "-mavx2" in fake_compiler.read_text()
    monkeypatch.setenv("PADST_FX_CXXFLAGS", "-g -DX='a b'")
    paths.add(build.library("avx2"))
    assert "-DX=a b" in commands(fake_compiler)[-2]
    assert len(paths) == 3


def test_what_no_instruction_set_changes_is_compiled_once(fake_compiler: Path) -> None:
    build.library("portable")
    first = commands(fake_compiler)
    build.library("avx2")
    compiled = commands(fake_compiler)[len(first) : -1]
    assert len(compiled) < len(build.sources()) / 2
    assert all("/cpu.cpp" in command and "-mavx2" in command for command in compiled)
    assert not any("-mavx2" in command for command in first)


def test_processes_that_start_together_build_once(fake_compiler: Path) -> None:
    code = "from padst_fx.kernels.native import build; print(build.library('portable'))"
    running = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    paths = {process.communicate()[0] for process in running}
    assert len(paths) == 1 and Path(paths.pop().strip()).exists()
    assert len(commands(fake_compiler)) == len(build.sources()) + 1


def test_the_compilers_words_are_in_the_error(
    fake_compiler: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "fake-c++").write_text("#!/bin/sh\necho 'unknown flag' >&2\nexit 1\n")
    with pytest.raises(build.BuildError, match="unknown flag"):
        build.library("portable")
    assert list((tmp_path / "cache").glob("*.so")) == []


def test_objects_that_cannot_be_linked_are_compiled_anew(
    fake_compiler: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build.library("portable")
    monkeypatch.setattr(build, "link_flags", lambda: ["--fail"])
    script = tmp_path / "fake-c++"
    script.write_text(COMPILER.replace("sleep 0.1", 'case "$*" in *--fail*) exit 1;; esac'))
    with pytest.raises(build.BuildError, match="--fail"):
        build.library("avx2")
    monkeypatch.undo()
    monkeypatch.setenv("CXX", str(script))
    monkeypatch.setenv("COMPILER_LOG", str(fake_compiler))
    monkeypatch.setenv("PADST_FX_CACHE", str(tmp_path / "cache"))
    before = len(commands(fake_compiler))
    build.library("avx2")
    assert len(commands(fake_compiler)) - before == len(build.sources()) + 1


def test_the_compiler_may_have_arguments(
    fake_compiler: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", f"{tmp_path / 'fake-c++'} -m64")
    build.library("portable")
    assert all(command.startswith("-m64 ") for command in commands(fake_compiler))


def test_a_compiler_asked_for_and_not_found_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "/nowhere/c++")
    with pytest.raises(build.BuildError, match="CXX is /nowhere/c"):
        build.compiler()
    monkeypatch.setenv("CXX", "g++ 'x")
    with pytest.raises(build.BuildError, match="cannot read CXX"):
        build.compiler()


def test_a_damaged_library_is_built_once_more(
    fake_compiler: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths, registered = [], []

    def open_library(path: str) -> SimpleNamespace:
        paths.append(path)
        if Path(path).read_text() != "built\n":
            raise OSError("file too short")
        return SimpleNamespace(padst_register=lambda: registered.append(path))

    monkeypatch.setattr("ctypes.CDLL", open_library)
    build.library("portable").write_text("")
    load._load("portable")
    assert registered == paths[1:]
    assert len(paths) == 2 and len(commands(fake_compiler)) == 2 * (len(build.sources()) + 1)


def test_unknown_instruction_set_lists_the_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(isa.VARIABLE, "mmx")
    with pytest.raises(ValueError, match=r"torch, portable, avx2, avx512, amx; got 'mmx'"):
        isa.chosen()


FORWARD = """
import warnings, torch, padst_fx
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    layer = padst_fx.SparseLinear(20, 12, "diag", 0.5)
    x = torch.randn(3, 20)
    for _ in range(2):
        y = layer(x)
    y.sum().backward()
torch.testing.assert_close(y, x @ layer.dense_weight().t() + layer.bias)
print(sum("plain torch" in str(w.message) for w in caught), [str(w.message) for w in caught])
"""


def run_forward(**environment: str) -> str:
    return run_python(FORWARD, **environment)


def test_without_a_compiler_one_warning_and_plain_torch(tmp_path: Path) -> None:
    out = run_forward(PATH="", CXX="", PADST_FX_CACHE=str(tmp_path))
    assert out.startswith("1 ") and "no C++ compiler found" in out


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    out = run_forward(PADST_FX_CACHE=str(tmp_path / "file" / "cache"))
    assert out.startswith("1 ") and "cannot build in" in out


def test_plain_torch_on_request_is_silent(tmp_path: Path) -> None:
    assert run_forward(PADST_FX_CPU_ISA="torch", PADST_FX_CACHE=str(tmp_path)).startswith("0 ")
    assert list(tmp_path.iterdir()) == []
