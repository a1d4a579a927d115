"""A sparse projection as the kernels that an engine runs, one after the other.

The steps are what the Triton launch function itself launches: it runs on fake tensors whose number
of tokens is a symbol, so kernels, constants and every integer of a launch are its own.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch._dynamo.source import ConstantSource
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv

from padst_fx.export.tensorrt.expression import TOKENS, Expression, expression_of
from padst_fx.kernels.tiles.problem import Problem, Tiles
from padst_fx.kernels.tiles.table import choosing, tabled
from padst_fx.kernels.triton_ahead_of_time import Launch, recorded

LAUNCHES = {
    "shift": ("shift", "shift_forward"),
    "gather_gemm": ("gather_gemm", "gather_gemm_forward"),
    "scatter_gemm": ("gather_gemm", "scatter_gemm_forward"),
}
# A kernel does not touch these pointers unless one of the constants is set.
READ_IF = {"perm_ptr": ("READ_PERM", "WRITE_PERM", "HAS_PERM"), "bias_ptr": ("HAS_BIAS",)}
LARGEST = 2**31 - 1
X = 0


@dataclass(frozen=True)
class Result:
    """A tensor that a step writes, contiguous."""

    shape: tuple[Expression, ...]
    dtype: torch.dtype


@dataclass(frozen=True)
class Step:
    """One launch: of `kernel`, on tensors `reads`, then `integers`, then `results`.

    `reads` counts the projection's operands (x, values, index, perm, bias) and on with the results
    of earlier steps. Where anything depends on the tokens, `reads[tokens_from]` has them as its
    first dimension. `source` is the launch that the compiler sees.
    """

    kernel: Any
    reads: tuple[int, ...]
    tokens_from: int | None
    integers: tuple[Expression, ...]
    results: tuple[Result, ...]
    programs: Expression
    constants: dict[str, Any]


@dataclass(frozen=True)
class Projection:
    """What a projection op is called with: meta tensors, and the settings that follow them.

    `x` is [tokens, features]; `index` is int32, for TensorRT has no constants of 8 bits.
    """

    op: str
    x: Tensor
    values: Tensor
    index: Tensor
    perm: Tensor
    bias: Tensor
    settings: tuple[int | str, ...]

    @property
    def operands(self) -> tuple[Tensor, ...]:
        return self.x, self.values, self.index, self.perm, self.bias


def steps(projection: Projection, dynamic: bool, device: torch.device) -> tuple[Step, ...]:
    """The steps of a projection, with the tiles that `device` has for its number of tokens.

    With `dynamic` they serve any number up to that of `projection.x`. Raises `ValueError` where an
    integer of a launch needs more than the 32 bits that a plugin can pass.
    """
    tokens = projection.x.shape[0]
    with _operands(projection, dynamic) as operands, choosing(_tiles(tokens, device)):
        module, name = LAUNCHES[projection.op]
        launch = importlib.import_module(f"padst_fx.kernels.{module}.triton_launch")
        call: Callable[..., Tensor] = getattr(launch, name)
        launches = recorded(lambda: call(*operands, *projection.settings))
        return _linked(launches, operands)


@contextmanager
def _operands(projection: Projection, dynamic: bool) -> Iterator[tuple[Tensor, ...]]:
    """The operands, the first with a symbolic number of tokens where it is to be dynamic."""
    if not dynamic or projection.x.shape[0] < 2:
        yield projection.operands
        return
    environment = ShapeEnv()
    with FakeTensorMode(shape_env=environment, allow_non_fake_inputs=True):
        tokens, features = projection.x.shape
        source = ConstantSource(TOKENS)
        symbol = environment.create_symbol(tokens, source, dynamic_dim=DimDynamic.DYNAMIC)
        size = environment.create_symintnode(symbol, hint=tokens, source=source)
        shapes = [(size, features), *(operand.shape for operand in projection.operands[1:])]
        yield tuple(
            torch.empty(shape, dtype=operand.dtype, device="meta")
            for shape, operand in zip(shapes, projection.operands, strict=True)
        )


def _tiles(tokens: int, device: torch.device) -> Callable[[Problem], Tiles]:
    """Tiles for a plain number of tokens, where the launch function has a symbol."""
    return lambda problem: tabled(device, problem._replace(tokens=tokens))


def _linked(launches: list[Launch], operands: tuple[Tensor, ...]) -> tuple[Step, ...]:
    """Launches as steps: every tensor is known by the number of its memory."""
    numbers = {_memory(operand): number for number, operand in enumerate(operands)}
    found = []
    for launch in launches:
        step, written = _step(launch, numbers, operands[X].shape[0])
        for tensor in written:
            numbers[_memory(tensor)] = len(numbers)
        found.append(step)
    return tuple(found)


def _step(
    launch: Launch, numbers: dict[int, int], tokens: int | torch.SymInt
) -> tuple[Step, list[Tensor]]:
    arguments = launch.arguments
    first, last = _span(arguments)
    reads = []
    for name, tensor in zip(launch.kernel.arg_names, arguments[:first], strict=False):
        assert isinstance(tensor, Tensor)
        used = any(launch.constants.get(flag) for flag in READ_IF.get(name, ()))
        # Whatever is not read may as well be x, which says how many tokens there are.
        reads.append(numbers[_memory(tensor)] if used or name not in READ_IF else X)
    written = [a for a in arguments[last:] if isinstance(a, Tensor)]
    integers = tuple(_checked(launch, a) for a in arguments[first:last])
    results = tuple(_result(tensor) for tensor in written)
    programs = _checked(launch, launch.programs)
    step = Step(launch.kernel, tuple(reads), None, integers, results, programs, launch.constants)
    if isinstance(tokens, torch.SymInt):
        step = replace(step, tokens_from=_tokens_from(step, arguments[:first], tokens))
    return step, written


def _span(arguments: tuple[Tensor | int, ...]) -> tuple[int, int]:
    """Where the integers stand: after the tensors that are read, before those written."""
    places = [at for at, argument in enumerate(arguments) if not isinstance(argument, Tensor)]
    first, last = places[0], places[-1] + 1
    if len(places) != last - first:
        raise ValueError("a plugin's arguments are inputs, then integers, then outputs")
    return first, last


def _tokens_from(
    step: Step, read: tuple[Tensor | int, ...], tokens: torch.SymInt
) -> int | None:
    shapes = [shape for result in step.results for shape in result.shape]
    if all(isinstance(value, int) for value in (*step.integers, step.programs, *shapes)):
        return None
    for place, (number, tensor) in enumerate(zip(step.reads, read, strict=True)):
        assert isinstance(tensor, Tensor)
        if number == X or str(tensor.shape[0]) == str(tokens):
            return place
    raise ValueError(f"{step.kernel.__name__} reads no tensor that says how many tokens there are")


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _result(tensor: Tensor) -> Result:
    lying = tensor if tensor.is_contiguous() else tensor.t()
    return Result(tuple(expression_of(size) for size in lying.shape), tensor.dtype)


def _checked(launch: Launch, value: Any) -> Expression:
    if abs(value) > LARGEST:
        raise ValueError(
            f"{launch.name} needs {int(value)} as an argument and a TensorRT plugin passes 32 bits:"
            " export with fewer tokens, or through ONNX"
        )
    return expression_of(value)
