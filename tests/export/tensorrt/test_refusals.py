"""What cannot be exported is refused in plain words, and leaves no file."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import engine_models
import pytest
import torch
from torch.export import Dim

import padst_fx
from padst_fx.export.tensorrt import building, requirements, source_model, torch_route
from padst_fx.export.tensorrt.converter import projection_of

X = torch.zeros(3, engine_models.WIDTH)


@pytest.fixture(autouse=True)
def nothing_is_left(tmp_path: Path) -> Iterator[None]:
    yield
    assert not list(tmp_path.iterdir())


def without(monkeypatch: pytest.MonkeyPatch, *missing: str) -> None:
    """As if these modules were not installed."""
    find = importlib.util.find_spec
    monkeypatch.setattr(
        requirements, "find_spec", lambda name: None if name in missing else find(name)
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"through": "jax"}, "through must be one of onnx, torch; got 'jax'"),
        ({"refit": True}, "refit must be one of inputs, weights or None; got True"),
        ({"precision": "int8"}, "precision must be one of fp32, fp16, bf16 or None, got 'int8'"),
        ({"library": "tvm"}, "library must be one of tensorrt, tensorrt_rtx; got 'tvm'"),
        ({"compute_capabilities": ["9.0"]}, r"must be a list of some of .*8\.9.*; got \['9.0'\]"),
        ({"compute_capabilities": "8.9"}, "must be a list of some of"),
        ({"opset": 9}, "opset must be one of"),
        ({"through": "torch", "refit": "inputs"}, "refit is for through='onnx' alone"),
    ],
)
def test_options(options: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        padst_fx.export_tensorrt(engine_models.small(), X, tmp_path / "m", **options)


def test_models_that_are_not_ready(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is in training mode"):
        padst_fx.export_tensorrt(engine_models.small().train(), X, tmp_path / "m")
    with pytest.raises(ValueError, match="is soft still"):
        padst_fx.export_tensorrt(engine_models.small(permutation="soft"), X, tmp_path / "m")
    with pytest.raises(TypeError, match=r"torch\.nn\.Module"):
        padst_fx.export_tensorrt("model", X, tmp_path / "m")  # type: ignore[arg-type]
    frozen = padst_fx.freeze(engine_models.small(), X)
    with pytest.raises(ValueError, match="a frozen model keeps its dtypes"):
        padst_fx.export_tensorrt(frozen, X, tmp_path / "m", precision="fp16")


def test_a_dynamic_dimension_needs_an_upper_bound(tmp_path: Path) -> None:
    shapes = {"x": {0: Dim.DYNAMIC}}
    with pytest.raises(ValueError, match="dimension 0 of x has no upper bound"):
        padst_fx.export_tensorrt(engine_models.small(), X, tmp_path / "m", shapes)


def test_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        padst_fx.export_tensorrt(engine_models.small(), X, tmp_path / "a" / "m")
    with pytest.raises(IsADirectoryError, match="it is a folder"):
        padst_fx.export_tensorrt(engine_models.small(), X, tmp_path)
    beside = tmp_path / "m.json"
    beside.mkdir()
    with pytest.raises(IsADirectoryError, match=r"m\.json: it is a folder"):
        padst_fx.export_tensorrt(engine_models.small(), X, tmp_path / "m")
    beside.rmdir()
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(PermissionError, match="cannot be written"):
        padst_fx.export_tensorrt(engine_models.small(), X, tmp_path / "m")


def test_an_error_while_building_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*given: object) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(building, "build", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        padst_fx.export_tensorrt(engine_models.small(), X, tmp_path / "m")


def test_missing_packages_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = engine_models.small()
    without(monkeypatch, "tensorrt", "tensorrt_rtx")
    with pytest.raises(ModuleNotFoundError, match="no TensorRT: pip install tensorrt or"):
        padst_fx.export_tensorrt(model, X, tmp_path / "m")
    without(monkeypatch, "tensorrt", "torch_tensorrt", "triton")
    with pytest.raises(ModuleNotFoundError, match="tensorrt and torch-tensorrt and triton: pip"):
        padst_fx.export_tensorrt(model, X, tmp_path / "m", through="torch")
    without(monkeypatch, "onnx", "onnxscript")
    with pytest.raises(ModuleNotFoundError, match="need onnx and onnxscript: pip install"):
        padst_fx.export_tensorrt(model, X, tmp_path / "m")


def test_a_gpu_is_asked_for_where_one_is_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = engine_models.small()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(requirements, "find_spec", lambda name: object())
    with pytest.raises(RuntimeError, match="through='torch' needs a CUDA device"):
        padst_fx.export_tensorrt(model, X, tmp_path / "m", through="torch")
    standard = SimpleNamespace(__name__="tensorrt", __version__="11.0.0")
    monkeypatch.setattr(requirements.importlib, "import_module", lambda name: standard)
    with pytest.raises(RuntimeError, match=r"building with tensorrt 11\.0\.0 needs a CUDA device"):
        padst_fx.export_tensorrt(model, X, tmp_path / "m", library="tensorrt")
    with pytest.raises(ValueError, match="builds for the GPU of this machine"):
        padst_fx.export_tensorrt(
            model, X, tmp_path / "m", library="tensorrt", compute_capabilities=["8.9"]
        )


def test_a_tensorrt_without_working_plugins_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RuntimeError, match=r"TensorRT 10\.14\.1 has broken plugins"):
        requirements.check_plugins("10.14.1")
    without(monkeypatch, "tensorrt.plugin")
    with pytest.raises(RuntimeError, match=r"TensorRT 10\.3\.0 has no tensorrt\.plugin"):
        requirements.check_plugins("10.3.0")


def test_plugins_need_model_and_inputs_on_the_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(requirements, "find_spec", lambda name: object())
    standard = SimpleNamespace(__name__="tensorrt", __version__="11.0.0")
    monkeypatch.setattr(torch_route.importlib, "import_module", lambda name: standard)
    with pytest.raises(ValueError, match="on a CUDA device, some are on cpu"):
        padst_fx.export_tensorrt(engine_models.small(), X, tmp_path / "m", through="torch")


def test_plugins_have_no_float64() -> None:
    with pytest.raises(ValueError, match="TensorRT has no float64: export with precision='fp32'"):
        projection_of("shift", X.double(), ())


def test_a_model_beyond_what_onnx_holds_in_one_piece(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source_model, "LARGEST_IN_ONE", 1000)
    with pytest.raises(ValueError, match=r"constants take [\d,]+ bytes .* refit='inputs'"):
        padst_fx.export_tensorrt(engine_models.small(), X, tmp_path / "m")
