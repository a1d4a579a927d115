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


Shape = tuple[Expression, ...]


@dataclass(frozen=True)
class Step:
    """One launch: of `kernel`, on tensors `reads`, then `integers`, then `results`.

    `reads` counts the projection's operands (x, values, index, perm, bias) and on with the results
    of earlier steps; `dtypes` are theirs. Where anything depends on the tokens,
    `reads[tokens_from]` has them as its first dimension. All results have the first dtype.
    """

    kernel: Any
    reads: tuple[int, ...]
    dtypes: tuple[torch.dtype, ...]
    tokens_from: int | None
    integers: tuple[Expression, ...]
    results: tuple[Shape, ...]
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
        step, written = _step(launch, numbers, operands[0])
        for tensor in written:
            numbers[_memory(tensor)] = len(numbers)
        found.append(step)
    return tuple(found)


def _step(
    launch: Launch, numbers: dict[int, int], x: Tensor
) -> tuple[Step, list[Tensor]]:
    arguments = launch.arguments
    first, last = _span(arguments)
    read, written = _tensors(arguments[:first]), _tensors(arguments[last:])
    names = launch.kernel.arg_names[:first]
    # Whatever is not read may as well be x, which says how many tokens there are.
    read = [t if _is_read(launch, name) else x for name, t in zip(names, read, strict=True)]
    step = Step(
        kernel=launch.kernel,
        reads=tuple(numbers[_memory(tensor)] for tensor in read),
        dtypes=tuple(tensor.dtype for tensor in read),
        tokens_from=None,
        integers=tuple(_checked(launch, integer) for integer in arguments[first:last]),
        results=tuple(_lying(tensor) for tensor in written),
        programs=_checked(launch, launch.programs),
        constants=launch.constants,
    )
    if any(tensor.dtype != read[0].dtype for tensor in written):
        raise ValueError(f"{launch.name} writes another dtype than that of its first tensor")
    return replace(step, tokens_from=_tokens_from(step, read, x)), written


def _is_read(launch: Launch, name: str) -> bool:
    flags = READ_IF.get(name)
    return flags is None or any(launch.constants.get(flag) for flag in flags)


def _tensors(arguments: tuple[Tensor | int, ...]) -> list[Tensor]:
    return [argument for argument in arguments if isinstance(argument, Tensor)]


def _span(arguments: tuple[Tensor | int, ...]) -> tuple[int, int]:
    """Where the integers stand: after the tensors that are read, before those written."""
    places = [at for at, argument in enumerate(arguments) if not isinstance(argument, Tensor)]
    first, last = places[0], places[-1] + 1
    if len(places) != last - first:
        raise ValueError("a plugin's arguments are inputs, then integers, then outputs")
    return first, last


def _tokens_from(step: Step, read: list[Tensor], x: Tensor) -> int | None:
    sizes = [size for shape in step.results for size in shape]
    if all(isinstance(value, int) for value in (*step.integers, step.programs, *sizes)):
        return None
    tokens = str(x.shape[0])
    places = [place for place, tensor in enumerate(read) if str(tensor.shape[0]) == tokens]
    if not places:
        raise ValueError(f"{step.kernel.__name__} reads nothing that tells the number of tokens")
    return places[0]


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _lying(tensor: Tensor) -> Shape:
    """The shape of a tensor as it lies in memory."""
    lying = tensor if tensor.is_contiguous() else tensor.t()
    return tuple(expression_of(size) for size in lying.shape)


def _checked(launch: Launch, value: Any) -> Expression:
    if abs(value) > LARGEST:
        raise ValueError(
            f"{launch.name} needs {int(value)} as an argument and a TensorRT plugin passes 32 bits:"
            " export with fewer tokens, or through ONNX"
        )
    return expression_of(value)
