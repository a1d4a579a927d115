"""What cannot be exported is refused with a sentence, and nothing is left behind."""

from __future__ import annotations

import importlib.util

import onnx
import pytest
import torch
from onnx_checks import check, session
from torch import nn

import padst_fx
from padst_fx import SparseLinear
from padst_fx.export.onnx import files

X = torch.randn(3, 32)


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(SparseLinear(32, 64, "diag", 0.9), nn.ReLU()).eval()


def refused(tmp_path, kind, match, *arguments, **options):
    path = tmp_path / "model.onnx"
    path.write_text("as it was")
    with pytest.raises(kind, match=match):
        padst_fx.export_onnx(*arguments, path, **options)
    assert path.read_text() == "as it was"
    assert [each.name for each in tmp_path.iterdir()] == ["model.onnx"]


def test_training_mode(model, tmp_path):
    model[0].train()
    refused(tmp_path, ValueError, r"0 is in training mode: call model.eval\(\) first", model, X)


def test_growth_scores(model, tmp_path):
    model[0].ask_for_scores()
    refused(tmp_path, ValueError, r"0 collects growth scores: .*DST.step\(\)", model, X)


def test_soft_permutations(tmp_path):
    soft = nn.Sequential(SparseLinear(32, 64, "diag", 0.9, permutation="soft")).eval()
    refused(tmp_path, ValueError, "the permutation of 0 is soft still", soft, X)


@pytest.mark.parametrize("opset", [17, 24, "20", True])
def test_opsets(model, tmp_path, opset):
    refused(tmp_path, ValueError, "opset must be one of 18 to 23", model, X, opset=opset)


def test_unknown_weights(model, tmp_path):
    match = "weights must be one of compact, expanded; got 'dense'"
    refused(tmp_path, ValueError, match, model, X, weights="dense")
    match = "custom_ops stores compact weights"
    refused(tmp_path, ValueError, match, model, X, weights="expanded", custom_ops=True)


def test_other_inputs(model, tmp_path):
    refused(tmp_path, TypeError, "example_inputs must be a tensor, a tuple", model, 3)
    refused(tmp_path, ValueError, "cannot export Sequential", model, torch.randn(3, 31))
    refused(tmp_path, TypeError, "model must be a torch.nn.Module, got str", "model", X)


class Unknown(nn.Module):
    """Ends in an operator that ONNX has nothing for."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.linalg.eigvals(x @ x.t()).real


def test_operators_that_onnx_lacks(tmp_path):
    match = "ONNX has no form for this model: .*linalg_eig"
    refused(tmp_path, ValueError, match, Unknown().eval(), X)


@pytest.mark.parametrize("name", ["onnx", "onnxscript"])
def test_missing_packages_are_named(model, tmp_path, monkeypatch, name):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        "padst_fx.export.onnx.exporting.find_spec", lambda n: None if n == name else found(n)
    )
    match = rf"needs {name}: pip install 'padst_fx\[onnx\]'"
    refused(tmp_path, ModuleNotFoundError, match, model, X)


def test_paths(model, tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        padst_fx.export_onnx(model, X, tmp_path / "nowhere" / "model.onnx")
    with pytest.raises(IsADirectoryError, match="it is a folder"):
        padst_fx.export_onnx(model, X, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_to(model, tmp_path, monkeypatch):
    """As the permission bits say; they hold for a superuser neither."""
    monkeypatch.setattr("os.access", lambda path, mode: False)
    refused(tmp_path, PermissionError, f"{tmp_path} cannot be written to", model, X)


def test_a_file_system_that_takes_no_file(model):
    """Where a superuser passes the check of permissions too."""
    with pytest.raises(OSError):
        padst_fx.export_onnx(model, X, "/proc/model.onnx")


def test_a_file_that_cannot_be_replaced(model, tmp_path, monkeypatch):
    def replace(source, target):
        raise PermissionError(f"not permitted: {target}")

    monkeypatch.setattr("os.replace", replace)
    refused(tmp_path, PermissionError, "not permitted: .*model.onnx", model, X)


def test_a_full_disk_leaves_nothing(model, tmp_path, monkeypatch):
    def save(made, path, **options):
        path.write_text("half")
        raise OSError("no space left on device")

    monkeypatch.setattr("onnx_ir.save", save)
    refused(tmp_path, OSError, "no space left", model, X)


def test_tensors_beyond_one_file_go_beside_it(model, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "LARGEST_IN_ONE", 100)
    report = padst_fx.export_onnx(model, X, tmp_path / "model.onnx")
    assert [path.name for path in report.files] == ["model.onnx", "model.onnx.data"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.onnx", "model.onnx.data"]
    onnx.checker.check_model(report.path)
    check(session(report.path), model, X)
