"""What stands in the files: sizes, forms, types, and what onnxruntime makes of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx_checks import error, outputs, run, session
from onnxruntime.capi.onnxruntime_pybind11_state import NotImplemented as NoKernel
from torch import Tensor, nn
from torch.export import Dim

import padst_fx
from padst_fx import NM, Block, Diag, SparseLinear, Unstructured

STRUCTURES = (Diag(), Diag(width=16), Diag(width=64), Block(64), NM(1, 10), Unstructured())
MADE_OF_CONSTANTS = {"ScatterND", "GatherND", "CastLike", "Range", "CumSum", "Mod"}


class Layers(nn.Module):
    """A 90 % sparse layer of 512 x 512 for each structure, behind random permutations."""

    def __init__(self, structures: tuple[padst_fx.Structure, ...]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(
            SparseLinear(512, 512, s, None if isinstance(s, NM) else 0.9, permutation="random")
            for s in structures
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        return [layer(x) for layer in self.layers]


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return Layers(STRUCTURES).eval()


@pytest.fixture(scope="module")
def report(model: nn.Module, tmp_path_factory: pytest.TempPathFactory):
    path = tmp_path_factory.mktemp("layers") / "layers.onnx"
    shapes = {"x": {0: Dim.DYNAMIC}}
    return padst_fx.export_onnx(model, torch.randn(200, 512), path, shapes)


def test_a_file_is_as_small_as_its_layers_are_sparse(report):
    dense = 512 * 512 * 4
    assert len(report.layers) == len(STRUCTURES)
    assert {layer.name for layer in report.layers} == {f"layers.{n}" for n in range(6)}
    for layer in report.layers:
        assert layer.dense == dense
        assert layer.share < 0.13, layer
    assert report.size < 0.15 * len(STRUCTURES) * dense
    assert all(layer.name in str(report) for layer in report.layers)


def test_forms_at_200_tokens(report):
    forms = {layer.name: layer.form for layer in report.layers}
    assert [forms[f"layers.{n}"] for n in (0, 2, 3, 4, 5)] == [
        "dense", "gather", "gather", "dense", "dense"
    ]  # fmt: skip


def operators(path: Path) -> list[str]:
    return [node.op_type for node in onnx.load(path).graph.node]


def test_onnxruntime_computes_constants_once(report, tmp_path):
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(report.path, options, providers=["CPUExecutionProvider"])
    assert MADE_OF_CONSTANTS & set(operators(report.path))
    found = operators(tmp_path / "optimized.onnx")
    assert not MADE_OF_CONSTANTS & set(found)
    assert found.count("MatMul") + found.count("FusedMatMul") + found.count("Gemm") >= 6


def test_expanded_weights_need_no_folding(tmp_path):
    model = Layers((Diag(), Block(64), NM(2, 4))).eval()
    x = torch.randn(200, 512)
    report = padst_fx.export_onnx(model, x, tmp_path / "model.onnx", weights="expanded")
    assert not MADE_OF_CONSTANTS & set(operators(report.path))
    assert error(run(session(report.path), x), outputs(model, x)) < 1e-4
    arrays = map(numpy_helper.to_array, onnx.load(report.path).graph.initializer)
    square = [array for array in arrays if array.shape == (512, 512)]
    nonzeros = [np.count_nonzero(a.reshape(128, 4, 512), axis=1).max() for a in square]
    assert 2 in nonzeros


@pytest.mark.parametrize("opset", [18, 23])
def test_other_opsets(tmp_path, opset):
    model = Layers((Diag(width=16), Unstructured(), NM(2, 4))).eval()
    x = torch.randn(20, 512)
    report = padst_fx.export_onnx(model, x, tmp_path / "model.onnx", opset=opset)
    assert onnx.load(report.path).opset_import[0].version == opset == report.opset
    assert error(run(session(report.path), x), outputs(model, x)) < 1e-4


def test_half_precision(tmp_path):
    model = Layers(STRUCTURES).eval()
    x = torch.randn(200, 512).half()
    expected = outputs(model, x.float())
    report = padst_fx.export_onnx(model.half(), x, tmp_path / "model.onnx")
    assert error(run(session(report.path), x), expected) < 5e-3


def test_bfloat16_is_written_for_other_runtimes(tmp_path):
    """onnxruntime's CPU provider has not all operators for it; ONNX's reference has."""
    model = Layers(STRUCTURES).eval()
    x = torch.randn(5, 512).bfloat16()
    expected = outputs(model, x.float())
    report = padst_fx.export_onnx(model.bfloat16(), x, tmp_path / "model.onnx")
    onnx.checker.check_model(report.path, full_check=True)
    with pytest.raises(NoKernel, match="NOT_IMPLEMENTED"):
        session(report.path)
    dtype = onnx.helper.tensor_dtype_to_np_dtype(onnx.TensorProto.BFLOAT16)
    given = {"x": x.float().numpy().astype(dtype)}
    assert error(ReferenceEvaluator(str(report.path)).run(None, given), expected) < 1e-2


def test_a_frozen_model_is_taken_as_it_is(model, report, tmp_path):
    x, shapes = torch.randn(200, 512), {"x": {0: Dim.DYNAMIC}}
    frozen = padst_fx.freeze(model, x, shapes, skip_slower=False)
    again = padst_fx.export_onnx(frozen, x, tmp_path / "frozen.onnx", shapes)
    assert again.layers == report.layers
    assert again.path.read_bytes() == report.path.read_bytes()
