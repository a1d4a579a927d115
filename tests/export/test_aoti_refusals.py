"""What `export_aoti` refuses, and that nothing half-written stays behind."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import padst_fx
from padst_fx import SparseLinear
from padst_fx.kernels.native import build, isa


def model(**options: Any) -> nn.Sequential:
    return nn.Sequential(SparseLinear(16, 16, "diag", 0.5, **options)).eval()


def export(given: nn.Module, path: Path, example: Any = None, **options: Any) -> Path:
    example = torch.randn(2, 16) if example is None else example
    return padst_fx.export_aoti(given, example, path, skip_slower=False, **options)


def collecting() -> nn.Module:
    """As between two updates, in a step whose scores will be used."""
    given = model()
    given[0].ask_for_scores()
    return given


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (lambda: torch.relu, TypeError, "must be a torch.nn.Module"),
        (lambda: model().train(), ValueError, r"training mode: call model.eval\(\)"),
        (collecting, ValueError, r"0 collects growth scores: .*DST.step\(\)"),
        (lambda: model(permutation="soft"), ValueError, "permutation of 0 is soft still"),
        (lambda: model().to("meta"), ValueError, r"0 is on meta: .*kernels of the CPU only"),
    ],
    ids=["no module", "training", "scores", "soft", "device"],
)
def test_a_model_that_is_not_ready(given: Any, error: type, message: str, tmp_path: Path) -> None:
    with pytest.raises(error, match=message):
        export(given(), tmp_path / "model.pt2")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"isa": "mmx"}, "isa must be one or several of portable, avx2, avx512, amx; got 'mmx'"),
        ({"isa": ()}, "isa must be one or several of"),
        ({"options": {"fuse_bais": True}}, "did you mean 'fuse_bias'"),
        ({"options": {"structure": "diag"}}, "option structure is not for packages"),
        ({"example": torch.randn(2, 15)}, "cannot export Sequential with these example_inputs"),
    ],
    ids=["isa", "no isa", "option", "structure", "inputs"],
)
def test_arguments(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        export(model(), tmp_path / "model.pt2", **options)
    assert list(tmp_path.iterdir()) == []


def test_paths(tmp_path: Path) -> None:
    (tmp_path / "folder.pt2").mkdir()
    (tmp_path / "file").touch()
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ValueError, match=r"path must end in .pt2, got '.*model.so'"):
        export(model(), tmp_path / "model.so")
    with pytest.raises(IsADirectoryError, match=r"cannot write .*folder.pt2: it is a folder"):
        export(model(), tmp_path / "folder.pt2")
    with pytest.raises(FileNotFoundError, match=r"cannot write .*nowhere/model.pt2"):
        export(model(), tmp_path / "nowhere" / "model.pt2")
    with pytest.raises(FileNotFoundError, match=r"cannot write .*: there is no folder .*file"):
        export(model(), tmp_path / "file" / "model.pt2")
    assert sorted(tmp_path.iterdir()) == before


def test_a_folder_that_cannot_be_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Permission bits do not hold for a superuser; /proc takes no file from anybody."""
    monkeypatch.setattr("torch._inductor.aot_compile", None)
    with pytest.raises(OSError):
        export(model(), Path("/proc/model.pt2"))
    path = tmp_path / "model.pt2"
    path.write_text("the last one")
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(PermissionError, match=f"{tmp_path} cannot be written to"):
        export(model(), path)
    assert os.listdir(tmp_path) == ["model.pt2"] and path.read_text() == "the last one"


def test_no_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "/nowhere/c++")
    with pytest.raises(build.BuildError, match=r"no C\+\+ compiler found: CXX is /nowhere"):
        export(model(), tmp_path / "model.pt2")


def test_plain_torch_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(isa.VARIABLE, "torch")
    with pytest.raises(ValueError, match="a package needs C\\+\\+ kernels: unset it, or name"):
        export(model(), tmp_path / "model.pt2")


def test_what_was_there_stays_until_the_package_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.pt2"
    path.write_text("the last one")

    def write_half(file: str, *_: Any) -> None:
        Path(file).write_text("half of")
        raise RuntimeError("disk full")

    def write_whole(file: str, *_: Any) -> None:
        Path(file).write_text("the next one")
        assert path.read_text() == "the last one"

    def refuse(*_: Any) -> None:
        raise PermissionError("not permitted")

    monkeypatch.setattr("padst_fx.export.aoti.package.put_companions", lambda *_: [])
    monkeypatch.setattr("torch._inductor.aot_compile", lambda *_, **__: [])
    monkeypatch.setattr("torch._inductor.package.package_aoti", write_half)
    with pytest.raises(RuntimeError, match="disk full"):
        export(model(), path)
    assert os.listdir(tmp_path) == ["model.pt2"] and path.read_text() == "the last one"
    monkeypatch.setattr("torch._inductor.package.package_aoti", write_whole)
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", refuse)
        with pytest.raises(PermissionError, match="not permitted"):
            export(model(), path)
    assert os.listdir(tmp_path) == ["model.pt2"] and path.read_text() == "the last one"
    assert export(model(), path) == path
    assert os.listdir(tmp_path) == ["model.pt2"] and path.read_text() == "the next one"
