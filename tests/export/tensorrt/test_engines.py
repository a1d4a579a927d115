"""Real TensorRT-RTX engines, built without a GPU, and the networks they were built from."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import engine_models
import onnx
import pytest
import tensorrt_rtx as trt
import torch
from torch.export import Dim

import padst_fx
from padst_fx.export.tensorrt import EngineReport
from padst_fx.export.tensorrt.building import Engine, Settings, build
from padst_fx.export.tensorrt.record import Input, Record
from padst_fx.export.tensorrt.requirements import Library, library

BATCH = Dim("batch", min=1, max=8)
ADA = ["8.9"]
FORMS = {
    "block": {"gather"},
    "tiled": {"gather"},
    "two_four": {"2:4"},
    "unstructured": {"dense"},
    "diag": {"dense"},
    "diag_runs": {"dense"},
    "one_four": {"dense"},
    "wide_diag": {"gather"},
}


def inputs(batch: int = 2) -> torch.Tensor:
    return torch.zeros(batch, engine_models.TOKENS, engine_models.WIDTH)


def export(model: torch.nn.Module, path: Path, **options: object) -> EngineReport:
    return padst_fx.export_tensorrt(
        model, inputs(), path, compute_capabilities=ADA, **options  # type: ignore[arg-type]
    )


@dataclass(frozen=True)
class Built:
    """What an engine was built from."""

    model: bytes
    settings: Settings


Shape = tuple[int, ...]


@dataclass(frozen=True)
class Network:
    """What TensorRT was given: shapes of inputs, outputs, and the ranges of its profiles."""

    inputs: dict[str, Shape]
    outputs: list[str]
    ranges: list[tuple[Shape, ...]]


@pytest.fixture
def networks(monkeypatch: pytest.MonkeyPatch) -> list[Network]:
    """Of every engine that TensorRT builds, in order, read from its own objects."""
    found, profiles = [], []
    create, serialize = (
        trt.Builder.create_optimization_profile, trt.Builder.build_serialized_network
    )

    def created(builder: trt.Builder) -> trt.IOptimizationProfile:
        profiles.append(create(builder))
        return profiles[-1]

    def serialized(
        builder: trt.Builder, network: trt.INetworkDefinition, config: trt.IBuilderConfig
    ) -> object:
        inputs = [network.get_input(number) for number in range(network.num_inputs)]
        outputs = [network.get_output(number).name for number in range(network.num_outputs)]
        assert config.num_optimization_profiles == len(profiles)
        ranges = [
            tuple(tuple(shape) for shape in profile.get_shape(given.name))
            for profile in profiles
            for given in inputs
        ]
        shapes = {given.name: tuple(given.shape) for given in inputs}
        found.append(Network(shapes, outputs, ranges))
        profiles.clear()
        return serialize(builder, network, config)

    monkeypatch.setattr(trt.Builder, "create_optimization_profile", created)
    monkeypatch.setattr(trt.Builder, "build_serialized_network", serialized)
    return found


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> list[Built]:
    """Of every engine that the test exports, in order."""
    found = []

    def spy(lib: Library, model: bytes, given: tuple[Input, ...], settings: Settings) -> Engine:
        found.append(Built(model, settings))
        return build(lib, model, given, settings)

    monkeypatch.setattr("padst_fx.export.tensorrt.building.build", spy)
    return found


@pytest.mark.parametrize("family", engine_models.FAMILIES)
def test_blocks_of_every_structure(
    family: str, networks: list[Network], tmp_path: Path
) -> None:
    """Where the report says sparse, the network's product has the multiply-adds of sparse."""
    model, structures = engine_models.sparse_blocks(family)
    report = export(model, tmp_path / "m.engine", dynamic_shapes={"x": {0: BATCH}})
    assert report.size == (tmp_path / "m.engine").stat().st_size > 0
    (given,) = report.record.inputs
    rest = (engine_models.TOKENS, engine_models.WIDTH)
    ranges = ((1, *rest), (2, *rest), (8, *rest))
    assert (given.least, given.usual, given.largest) == ranges
    assert len(report.record.outputs) == 1
    assert networks == [Network({"x": (-1, *rest)}, list(report.record.outputs), [ranges])]
    assert sorted(layer.name for layer in report.layers) == sorted(structures)
    for layer in report.layers:
        name = structures[layer.name]
        assert layer.form in FORMS[name]
        weight = model.get_submodule(layer.name).dense_weight()
        assert layer.multiply_adds is not None, layer.name
        if layer.form != "gather":
            assert layer.multiply_adds == weight.numel()
        elif name in ("block", "tiled"):
            assert layer.multiply_adds == weight.count_nonzero()
        else:
            assert weight.count_nonzero() <= layer.multiply_adds <= weight.numel() / 2


def test_two_four_weights_are_constants_with_two_zeros_in_four(
    builds: list[Built], tmp_path: Path
) -> None:
    """The builder is told to look for zeros, and finds them along the summed axis of constants."""
    export(engine_models.small(padst_fx.NM(2, 4), None, permutation="random"), tmp_path / "m")
    (built,) = builds
    assert built.settings.flags == ("SPARSE_WEIGHTS",)
    graph = onnx.load_from_string(built.model).graph
    constants = {each.name: onnx.numpy_helper.to_array(each) for each in graph.initializer}
    weights = [constants[node.input[1]] for node in graph.node if node.op_type == "MatMul"]
    assert len(weights) == 2
    for weight in weights:
        groups = weight.reshape(-1, 4, weight.shape[1])
        assert ((groups != 0).sum(1) == 2).all()


@pytest.mark.parametrize(
    ("precision", "kind", "name"), [("fp16", "float16", "HALF"), ("bf16", "bfloat16", "BF16")]
)
def test_precision(
    precision: str, kind: str, name: str, builds: list[Built], tmp_path: Path
) -> None:
    model = engine_models.small()
    report = export(model, tmp_path / "m.engine", precision=precision)
    assert report.record.inputs[0].dtype == kind
    assert next(model.parameters()).dtype == torch.float32
    assert types_in_network(builds[0].model) == {name}


def types_in_network(model: bytes) -> set[str]:
    """The dtypes of inputs and outputs as TensorRT parses them."""
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(1)
    parser = trt.OnnxParser(network, logger)
    assert parser.parse(model)
    return {tensor.dtype.name for tensor in (network.get_input(0), network.get_output(0))}


def test_size_follows_sparsity(tmp_path: Path) -> None:
    """Weights dominate here: what is saved is what fewer of them take."""

    class Wide(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = (torch.nn.Linear(512, 512) for _ in range(2))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.second(torch.relu(self.first(x)))

    sizes = {}
    for sparsity in (0.5, 0.9375):
        model = Wide().eval()
        padst_fx.sparsify(
            model, padst_fx.Block(size=32), sparsity, include=["first", "second"]
        )
        report = padst_fx.export_tensorrt(
            model, torch.zeros(4, 512), tmp_path / "m.engine", compute_capabilities=ADA
        )
        sizes[sparsity] = report.size
    saved = 2 * 4 * 512**2 * (1 / 2 - 1 / 16)
    assert sizes[0.5] - sizes[0.9375] == pytest.approx(saved, rel=0.1)


def test_products_of_a_deep_model_are_found(tmp_path: Path) -> None:
    """A walk back from each product to its constants must not take a frame for every node."""
    layers = [torch.nn.Sequential(torch.nn.Linear(32, 32), torch.nn.ReLU()) for _ in range(150)]
    model = torch.nn.Sequential(*layers).eval()
    padst_fx.sparsify(model, padst_fx.Block(size=16), 0.5, include=["*.0"])
    report = padst_fx.export_tensorrt(
        model, torch.zeros(4, 32), tmp_path / "m.engine", compute_capabilities=ADA
    )
    assert [layer.multiply_adds for layer in report.layers] == [2 * 16**2] * 150


def test_a_timing_cache_is_written_and_read_again(builds: list[Built], tmp_path: Path) -> None:
    cache = tmp_path / "timing.cache"
    export(engine_models.small(), tmp_path / "m.engine", timing_cache=cache)
    first = cache.read_bytes()
    assert first
    export(engine_models.small(), tmp_path / "m.engine", timing_cache=cache)
    assert [built.settings.timing_cache for built in builds] == [b"", first]


def test_record_says_how_to_feed_the_engine(builds: list[Built], tmp_path: Path) -> None:
    report = export(engine_models.small(), tmp_path / "m.engine")
    assert report.files == (tmp_path / "m.engine", tmp_path / "m.engine.json")
    assert Record.read(report.path) == report.record
    assert json.loads(report.files[1].read_text())["library"] == "tensorrt_rtx"
    assert report.record.capabilities == builds[0].settings.capabilities == ("SM89",)
    assert builds[0].settings.flags == ()
    assert "first" in str(report) and "gather" in str(report)
    assert {path.name for path in tmp_path.iterdir()} == {"m.engine", "m.engine.json"}


def test_tensorrts_own_words_are_passed_on() -> None:
    with pytest.raises(RuntimeError, match=r"tensorrt_rtx .* could not read the ONNX model: .+"):
        build(library(None), b"no model", (), Settings())
