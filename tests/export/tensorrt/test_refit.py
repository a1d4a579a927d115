"""New weights and masks for an engine that was built once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import engine_models
import numpy as np
import onnxruntime
import pytest
import safetensors.numpy
import torch
from torch import nn

import padst_fx
from padst_fx.export.tensorrt.building import Engine, Settings, build
from padst_fx.export.tensorrt.requirements import Library

X = (torch.randn(3, engine_models.WIDTH),)


def exported(model: nn.Module, path: Path) -> Path:
    padst_fx.export_tensorrt(model, X, path, refit="inputs", compute_capabilities=["8.9"])
    return path


def train(model: nn.Module) -> int:
    """Some steps with changes of the topology; how often it changed."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    dst = padst_fx.DST(model, optimizer, method="rigl", delta_t=1, t_end=4, drop_fraction=0.5)
    model.train()
    changes = 0
    for _ in range(4):
        model(torch.randn(16, engine_models.WIDTH)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        changes += dst.step()
    model.eval()
    return changes


def run(graph: bytes, engine: Path, x: torch.Tensor) -> np.ndarray:
    """What the engine's graph computes from the weights that lie beside it."""
    session = onnxruntime.InferenceSession(graph)
    weights = safetensors.numpy.load_file(f"{engine}.weights.safetensors")
    names = [each.name for each in session.get_inputs()]
    (given,) = set(names) - weights.keys()
    assert set(names) - {given} == weights.keys()
    (y,) = session.run(None, {given: x.numpy(), **weights})
    return y


def test_engine_follows_training_without_being_rebuilt(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    graphs = []

    def spy(lib: Library, graph: bytes, *given: Any) -> Engine:
        graphs.append(graph)
        return build(lib, graph, *given)

    monkeypatch.setattr("padst_fx.export.tensorrt.building.build", spy)
    model = nn.Sequential(
        engine_models.pair(padst_fx.Block(size=16), padst_fx.NM(2, 4)),
        engine_models.pair(padst_fx.Diag(), padst_fx.NM(1, 4, tile=16)),
    ).eval()
    nn.init.normal_(model[1].norm.bias)
    engine = exported(model, tmp_path / "m.engine")
    built, record = engine.read_bytes(), (tmp_path / "m.engine.json").read_bytes()
    (graph,) = graphs
    torch.testing.assert_close(torch.from_numpy(run(graph, engine, X[0])), model(*X).detach())
    layers = [each for each in model.modules() if isinstance(each, padst_fx.SparseLinear)]
    indices = [layer.index.clone() for layer in layers]
    assert train(model) > 0
    for index, layer in zip(indices, layers, strict=True):
        assert not torch.equal(index, layer.index)
    written = padst_fx.refit_tensorrt(engine, model, X)
    assert written == (tmp_path / "m.engine.weights.safetensors",)
    assert engine.read_bytes() == built and len(graphs) == 1
    assert (tmp_path / "m.engine.json").read_bytes() == record
    # The old graph, whose weights are all inputs, with the new weights.
    torch.testing.assert_close(torch.from_numpy(run(graph, engine, X[0])), model(*X).detach())


def test_another_structure_is_refused_and_nothing_changes(tmp_path: Path) -> None:
    engine = exported(engine_models.small(), tmp_path / "m.engine")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ValueError, match=r"has shape .* in the model and .* in the engine"):
        padst_fx.refit_tensorrt(engine, engine_models.small(sparsity=0.5), X)

    class Other(engine_models.Small):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.second(torch.sigmoid(self.norm(self.first(x))))

    other = engine_models.small()
    other.__class__ = Other
    with pytest.raises(ValueError, match="graph is not the one"):
        padst_fx.refit_tensorrt(engine, other, X)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_an_engine_with_constants_is_refused(tmp_path: Path) -> None:
    model = engine_models.small()
    padst_fx.export_tensorrt(model, X, tmp_path / "m", compute_capabilities=["8.9"])
    with pytest.raises(ValueError, match="exported without refit"):
        padst_fx.refit_tensorrt(tmp_path / "m", model, X)
    with pytest.raises(FileNotFoundError, match="json"):
        padst_fx.refit_tensorrt(tmp_path / "other", model, X)


def test_tensorrts_own_refitting_needs_a_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RuntimeError, match="refit='weights' needs a CUDA device"):
        padst_fx.export_tensorrt(engine_models.small(), X, tmp_path / "m", refit="weights")
    assert not list(tmp_path.iterdir())


def test_where_a_gpu_is_tensorrts_own_refitting_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = []

    def spy(lib: Library, graph: bytes, given: Any, settings: Settings) -> Engine:
        flags.append(settings.flags)
        return Engine(b"engine", None, ("y",), {})

    monkeypatch.setattr("padst_fx.export.tensorrt.building.build", spy)
    monkeypatch.setattr("padst_fx.export.tensorrt.requirements.check_gpu", lambda purpose: None)
    for structure in (padst_fx.Block(size=16), padst_fx.NM(2, 4)):
        model = engine_models.small(structure, None if isinstance(structure, padst_fx.NM) else 0.75)
        report = padst_fx.export_tensorrt(
            model, X, tmp_path / "m", refit="weights", compute_capabilities=["8.9"]
        )
        assert report.record.refit == "weights"
    assert flags == [("REFIT",), ("SPARSE_WEIGHTS", "REFIT")]
