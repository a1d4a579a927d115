"""Converters and plugins of exported layers, run in Triton's interpreter against the layers."""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
from fake_plugin_module import PluginModule
from torch import Tensor, nn
from torch.export import Dim

import padst_fx
from padst_fx.export.tensorrt.attribute import decoded
from padst_fx.export.tensorrt.converter import register_converters
from padst_fx.export.tensorrt.expression import evaluate
from padst_fx.export.tensorrt.plugin import register
from padst_fx.export.tensorrt.step import LAUNCHES
from padst_fx.kernels.integers import ceil_div
from padst_fx.projections.graph import exported

CPU = torch.device("cpu")
BATCH, LENGTH = Dim("batch", min=1, max=5), Dim("length", min=1, max=9)
STRUCTURES = {
    "diag": (padst_fx.Diag(), 48, 32),
    "tall_diag": (padst_fx.Diag(), 32, 48),
    "block": (padst_fx.Block(size=16), 64, 32),
    "tall_wide_diag": (padst_fx.Diag(width=16), 32, 64),
    "tall_narrow_diag": (padst_fx.Diag(width=8), 32, 64),
    "long_wide_diag": (padst_fx.Diag(width=8), 64, 32),
    "two_four": (padst_fx.NM(2, 4), 64, 48),
    "tiled": (padst_fx.NM(1, 4, tile=16), 64, 32),
}


class Made:
    """A layer of the network: its outputs are computed when they are asked for."""

    def __init__(self, compute: Callable[[Made], tuple[Tensor, ...]]) -> None:
        self.compute = compute
        self.reshape_dims: Any = None
        self.name = ""

    def set_input(self, place: int, tensor: Tensor) -> None:
        assert place == 1
        self.reshape_dims = tensor.tolist()

    def get_output(self, place: int) -> Tensor:
        if not hasattr(self, "outputs"):
            self.outputs = self.compute(self)
        return self.outputs[place]


class Network:
    """TensorRT's network, on tensors with values; plugins run their kernels."""

    def __init__(self) -> None:
        self.kernels: list[str] = []

    def add_shuffle(self, tensor: Tensor) -> Made:
        return Made(lambda layer: (tensor.reshape(tuple(layer.reshape_dims)),))

    def add_shape(self, tensor: Tensor) -> Made:
        return Made(lambda layer: (torch.tensor(tensor.shape),))

    def add_slice(self, tensor: Tensor, start: Any, shape: Any, stride: Any) -> Made:
        assert stride == (1,)
        return Made(lambda layer: (tensor[start[0] : start[0] + shape[0]],))

    def add_constant(self, shape: Any, array: Any) -> Made:
        return Made(lambda layer: (torch.from_numpy(array).reshape(shape),))

    def add_concatenation(self, tensors: list[Tensor]) -> Made:
        return Made(lambda layer: (torch.cat(tensors),))

    def add_plugin(self, call: tuple[list[Tensor], str], aot: bool) -> Made:
        assert aot
        tensors, text = call
        return Made(lambda layer: self._run(tensors, text))

    def _run(self, tensors: list[Tensor], text: str) -> tuple[Tensor, ...]:
        step = decoded(text)
        self.kernels.append(step.kernel.__name__)
        assert [tensor.dtype for tensor in tensors] == list(step.dtypes)
        tokens = None if step.tokens_from is None else tensors[step.tokens_from].shape[0]
        results = [
            torch.full([evaluate(size, tokens, ceil_div) for size in shape], -7777,
                       dtype=step.dtypes[0])
            for shape in step.results
        ]  # fmt: skip
        integers = [evaluate(integer, tokens, ceil_div) for integer in step.integers]
        programs = evaluate(step.programs, tokens, ceil_div)
        step.kernel[(programs,)](*tensors, *integers, *results, **step.constants)
        return tuple(results)


def converters() -> dict[Any, Callable[..., Any]]:
    """The converters as they are registered with Torch-TensorRT."""
    trtp = PluginModule()
    register(trtp, lambda: (8, 0))  # type: ignore[arg-type]
    calls = {
        name.partition("::")[2]: lambda *tensors, step: (list(tensors), step)
        for name in trtp.descriptors
    }
    trtp.op = types.SimpleNamespace(padst=types.SimpleNamespace(**calls))  # type: ignore[attr-defined]
    found: dict[Any, Callable[..., Any]] = {}

    def register_one(target: Any, *, supports_dynamic_shapes: bool) -> Callable[..., Any]:
        assert supports_dynamic_shapes
        return lambda function: found.setdefault(target, function)

    register_converters(trtp, register_one, lambda ctx, tensor, name: tensor, CPU)
    return found


class Layers(nn.Module):
    """Layers of the given structures, side by side, each of which reads the first features."""

    def __init__(self, names: tuple[str, ...], permuted: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleDict()
        for name in names:
            structure, inputs, outputs = STRUCTURES[name]
            layer = nn.ModuleDict({"own": nn.Linear(inputs, outputs, bias=permuted)}).eval()
            sparsity = None if isinstance(structure, padst_fx.NM) else 0.5
            permutation = "random" if permuted else "identity"
            self.layers[name] = padst_fx.sparsify(
                layer, structure, sparsity, permutation=permutation, include=["own"]
            )

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(
            layer["own"](x[..., : layer["own"].in_features]) for layer in self.layers.values()
        )


def converted(model: Layers, x: Tensor, dynamic: bool) -> list[tuple[Tensor, list[str]]]:
    """Every layer's result from plugins, on other sizes than those it was exported with."""
    shapes = {"x": {0: BATCH, 1: LENGTH}} if dynamic else None
    example = torch.randn(3, 4, x.shape[-1]) if dynamic else x
    frozen = padst_fx.freeze(model, example, shapes, skip_slower=False)
    program = exported(frozen.program, (example,), {}, shapes)
    signature, state = program.graph_signature, program.state_dict
    stored = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    known = {name: state[at] for name, at in stored.items()}
    found = {}
    for node in program.graph.nodes:
        if str(node.target).startswith("padst."):
            rows = x[..., : node.args[0].meta["val"].shape[-1]].contiguous()
            args = [known.get(a.name, rows) if isinstance(a, torch.fx.Node) else a
                    for a in node.args]  # fmt: skip
            network = Network()
            context = types.SimpleNamespace(net=network, current_node=node)
            y = converters()[node.target](context, node.target, tuple(args), {}, node.name)
            found[node] = y, network.kernels
    (output,) = program.graph.find_nodes(op="output")
    return [found[node] for node in output.args[0]]


@pytest.mark.parametrize(
    ("sizes", "dynamic", "permuted"),
    [((2, 3), False, False), ((5, 9), False, True), ((5, 9), True, True), ((1, 2), True, False)],
)
def test_equals_the_layers(sizes: tuple[int, int], dynamic: bool, permuted: bool) -> None:
    torch.manual_seed(0)
    model = Layers(tuple(STRUCTURES), permuted)
    x = torch.randn(*sizes, 64)
    results = converted(model, x, dynamic)
    for (y, kernels), expected in zip(results, model(x), strict=True):
        assert kernels
        torch.testing.assert_close(y, expected.detach())


def test_every_op_has_a_converter() -> None:
    assert len(converters()) == len(LAUNCHES)


@pytest.mark.parametrize(
    ("name", "launched"),
    [
        ("tall_wide_diag", ["copy_kernel", "scatter_dot_kernel"]),
        ("tall_narrow_diag", ["entry_lists_kernel", "copy_kernel", "scatter_sum_kernel"]),
    ],
)
def test_many_tokens_are_copied_once_and_entries_listed_where_needed(
    name: str, launched: list[str]
) -> None:
    model = Layers((name,), permuted=True)
    ((_, kernels),) = converted(model, torch.randn(5, 9, 32), dynamic=True)
    assert kernels == launched
