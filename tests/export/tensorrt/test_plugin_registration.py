"""Plugins as TensorRT sees them: names, signatures, shapes, launches."""

from __future__ import annotations

import pytest
from fake_plugin_module import PluginModule, SymInt32, TensorDesc
from plugin_cases import CPU, KINDS, projection

from padst_fx.export.tensorrt.attribute import encoded
from padst_fx.export.tensorrt.expression import evaluate
from padst_fx.export.tensorrt.plugin import KERNELS, NAMESPACE, register
from padst_fx.export.tensorrt.ptx import parameters, passed
from padst_fx.export.tensorrt.step import steps
from padst_fx.kernels.integers import ceil_div

MOST = 40


@pytest.fixture
def trtp() -> PluginModule:
    module = PluginModule()
    register(module, lambda: (8, 0))  # type: ignore[arg-type]
    return module


def value(number: int | SymInt32) -> int:
    return number if isinstance(number, int) else number.value


def test_every_kernel_is_registered_with_an_ahead_of_time_implementation(
    trtp: PluginModule,
) -> None:
    identifiers = {f"{NAMESPACE}::{kernel}" for kernel in KERNELS}
    assert trtp.descriptors.keys() == identifiers
    assert trtp.implementations.keys() == identifiers
    for kernel, arity in KERNELS.items():
        *tensors, attribute = trtp.attributes[f"{NAMESPACE}::{kernel}"]
        assert (len(tensors), attribute) == (arity.reads, "step")
        assert trtp.writes[f"{NAMESPACE}::{kernel}"] == arity.writes


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tokens", [17, MOST])
def test_shapes_and_launches(trtp: PluginModule, kind: str, tokens: int) -> None:
    """A plugin says of given sizes what the steps say of their number of tokens."""
    case = projection(kind, MOST)
    known = [TensorDesc(o.dtype, *(tokens if o is case.x and axis == 0 else size
                                   for axis, size in enumerate(o.shape)))
             for o in case.operands]  # fmt: skip
    for step in steps(case, True, CPU):
        identifier = f"{NAMESPACE}::{step.kernel.__name__}"
        inputs = [known[number] for number in step.reads]
        outputs = trtp.descriptors[identifier](*inputs, step=encoded(step))
        for output, shape in zip(outputs, step.results, strict=True):
            sizes = [evaluate(size, tokens, ceil_div) for size in shape]
            assert [value(size) for size in output.shape_expr] == sizes
            assert output.dtype == step.dtypes[0]
        arguments = (*inputs, encoded(step), outputs, 0)
        name, ptx, launch, extra = trtp.implementations[identifier](*arguments)
        assert value(launch.grid_x) == evaluate(step.programs, tokens, ceil_div)
        assert launch.block_x == 32 * step.constants["num_warps"]
        expected = [evaluate(integer, tokens, ceil_div) for integer in passed(step)]
        assert [value(each) for each in extra] == expected
        assert len(parameters(ptx, name)) == len(inputs) + len(extra) + len(outputs)
        known += outputs
