"""The kernels as TensorRT's quickly deployable plugins, compiled ahead of time."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import GenericAlias, ModuleType
from typing import Any, NamedTuple

from padst_fx.export.tensorrt.attribute import decoded
from padst_fx.export.tensorrt.expression import evaluate
from padst_fx.export.tensorrt.ptx import compile_step, passed

NAMESPACE = "padst"
STEP = "step"


class Arity(NamedTuple):
    """How many tensors a kernel reads and writes."""

    reads: int
    writes: int


KERNELS = {
    "copy_kernel": Arity(2, 1),
    "shift_product_kernel": Arity(5, 1),
    "gather_dot_kernel": Arity(5, 1),
    "gather_sum_kernel": Arity(5, 1),
    "entry_lists_kernel": Arity(1, 2),
    "scatter_dot_kernel": Arity(6, 1),
    "scatter_sum_kernel": Arity(6, 1),
}


def register(trtp: ModuleType, capability: Callable[[], tuple[int, int]]) -> None:
    """Register every kernel as a plugin `padst::<kernel>` with `trtp`, `tensorrt.plugin`.

    A plugin has one attribute, the text of its `Step`. `capability` says for which compute
    capability it is compiled, and is asked as an engine is built.
    """
    for kernel, arity in KERNELS.items():
        identifier = f"{NAMESPACE}::{kernel}"
        trtp.register(identifier)(_descriptor(trtp, arity))
        trtp.aot_impl(identifier)(_implementation(trtp, arity, capability))


def _descriptor(trtp: ModuleType, arity: Arity) -> Callable[..., Any]:
    """Shapes and dtypes of what is written: all like the first tensor but for the shape."""

    def describe(*inputs: Any, step: str) -> tuple[Any, ...]:
        plan = decoded(step)
        results = []
        for shape in plan.results:
            result = inputs[0].like()
            sizes = trtp.ShapeExprs(len(shape))
            for axis, size in enumerate(shape):
                sizes[axis] = evaluate(size, _tokens(plan.tokens_from, inputs), trtp.cdiv)
            result.shape_expr = sizes
            results.append(result)
        return tuple(results)

    parameters = [*_tensors(trtp, arity.reads), _parameter(STEP, str)]
    describe.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        parameters, return_annotation=_tuple(*[trtp.TensorDesc] * arity.writes)
    )
    return describe


def _implementation(
    trtp: ModuleType, arity: Arity, capability: Callable[[], tuple[int, int]]
) -> Callable[..., Any]:
    """The compiled kernel, how it is launched, and its integers between inputs and outputs."""

    def implement(*arguments: Any) -> tuple[str, str, Any, Any]:
        inputs, step = arguments[: arity.reads], decoded(arguments[arity.reads])
        tokens = _tokens(step.tokens_from, inputs)
        binary = compile_step(step, capability())
        launch = trtp.KernelLaunchParams()
        launch.grid_x = evaluate(step.programs, tokens, trtp.cdiv)
        launch.block_x, launch.shared_mem = binary.threads, binary.shared
        integers = passed(step)
        extra = trtp.SymIntExprs(len(integers))
        for place, integer in enumerate(integers):
            extra[place] = trtp.SymInt32(evaluate(integer, tokens, trtp.cdiv))
        return binary.name, binary.ptx, launch, extra

    tensors = _tensors(trtp, arity.reads)
    outputs = _parameter("outputs", _tuple(*[trtp.TensorDesc] * arity.writes))
    parameters = [*tensors, _parameter(STEP, str), outputs, _parameter("tactic", int)]
    implement.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        parameters, return_annotation=_tuple(str, str, trtp.KernelLaunchParams, trtp.SymIntExprs)
    )
    return implement


def _tokens(place: int | None, inputs: tuple[Any, ...]) -> Any:
    return None if place is None else inputs[place].shape_expr[0]


def _tensors(trtp: ModuleType, count: int) -> list[inspect.Parameter]:
    return [_parameter(f"tensor{number}", trtp.TensorDesc) for number in range(count)]


def _tuple(*types: Any) -> GenericAlias:
    """The annotation `tuple[...]` of these types."""
    return GenericAlias(tuple, types)


def _parameter(name: str, annotation: Any) -> inspect.Parameter:
    return inspect.Parameter(
        name, inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=annotation
    )
