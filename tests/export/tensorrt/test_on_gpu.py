"""The whole way on a GPU, where the packages are."""

from __future__ import annotations

import importlib
from importlib.util import find_spec
from pathlib import Path

import engine_models
import pytest
import torch
from torch import Tensor, nn

import padst_fx
from padst_fx.export.tensorrt import EngineReport
from padst_fx.export.tensorrt.requirements import LIBRARIES

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.skipif(
        not any(map(find_spec, LIBRARIES)), reason=f"needs {' or '.join(LIBRARIES.values())}"
    ),
]
BATCH = torch.export.Dim("batch", min=1, max=64)
STRUCTURES = {
    "block": (padst_fx.Block(size=16), 0.75),
    "diag": (padst_fx.Diag(), 0.75),
    "wide_diag": (padst_fx.Diag(width=16), 0.75),
    "two_four": (padst_fx.NM(2, 4), None),
}


def run(report: EngineReport, x: Tensor) -> Tensor:
    """What the engine computes."""
    from safetensors.torch import load_file

    trt = importlib.import_module(report.record.library)
    logger = trt.Logger(trt.Logger.ERROR)
    engine = trt.Runtime(logger).deserialize_cuda_engine(report.path.read_bytes())
    context = engine.create_execution_context()
    bound = load_file(report.files[2], device="cuda") if report.record.weights else {}
    y = torch.full_like(x, float("nan"))
    context.set_input_shape(report.record.inputs[0].name, tuple(x.shape))
    bound |= {report.record.inputs[0].name: x, report.record.outputs[0]: y}
    for name, tensor in bound.items():
        context.set_tensor_address(name, tensor.data_ptr())
    stream = torch.cuda.current_stream()
    assert context.execute_async_v3(stream.cuda_stream)
    stream.synchronize()
    return y


def check(report: EngineReport, model: nn.Module) -> None:
    for tokens in (1, 5, 64):
        x = torch.randn(tokens, engine_models.WIDTH, device="cuda")
        with torch.no_grad():
            torch.testing.assert_close(run(report, x), model(x), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("name", STRUCTURES)
@pytest.mark.parametrize("refit", [None, "inputs"])
def test_through_onnx(name: str, refit: str | None, tmp_path: Path) -> None:
    structure, sparsity = STRUCTURES[name]
    model = engine_models.small(structure, sparsity, permutation="random")
    x = torch.zeros(5, engine_models.WIDTH)
    report = padst_fx.export_tensorrt(
        model, x, tmp_path / "m", {"x": {0: BATCH}}, refit=refit, precision="fp32"
    )
    check(report, model.cuda())


def test_tensorrts_own_refitting(tmp_path: Path) -> None:
    model, x = engine_models.small(), torch.zeros(5, engine_models.WIDTH)
    report = padst_fx.export_tensorrt(model, x, tmp_path / "m", {"x": {0: BATCH}}, refit="weights")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    padst_fx.refit_tensorrt(report.path, model, x, {"x": {0: BATCH}})
    check(report, model.cuda())


@pytest.mark.skipif(find_spec("torch_tensorrt") is None, reason="needs torch-tensorrt")
@pytest.mark.parametrize("name", STRUCTURES)
def test_through_torch_tensorrt(name: str, tmp_path: Path) -> None:
    structure, sparsity = STRUCTURES[name]
    model = engine_models.small(structure, sparsity, permutation="random").cuda()
    x = torch.zeros(5, engine_models.WIDTH, device="cuda")
    report = padst_fx.export_tensorrt(
        model, x, tmp_path / "m", {"x": {0: BATCH}}, through="torch"
    )
    assert {layer.reason for layer in report.layers} == {"this package's kernel, as a plugin"}
    check(report, model)
