"""What of `tensorrt.plugin` the plugins use, on plain integers or on symbols.

Its checks of signatures follow the module's documentation: inputs, then attributes, all annotated;
`aot_impl` takes the same and then `outputs` and `tactic`.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable
from typing import Any


class SymInt32:
    """A symbolic integer whose value is known to tests alone; integers stand on its right."""

    def __init__(self, value: int | SymInt32) -> None:
        self.value: int = value.value if isinstance(value, SymInt32) else value

    def __add__(self, other: int | SymInt32) -> SymInt32:
        return SymInt32(self.value + SymInt32(other).value)

    def __mul__(self, other: int | SymInt32) -> SymInt32:
        return SymInt32(self.value * SymInt32(other).value)

    def __floordiv__(self, other: int | SymInt32) -> SymInt32:
        return SymInt32(self.value // SymInt32(other).value)


class ShapeExprs(list):
    """Sizes, of which each is set on its own."""

    def __init__(self, length: int) -> None:
        super().__init__([None] * length)


class SymIntExprs(ShapeExprs):
    """Integers between inputs and outputs of a kernel."""

    def __setitem__(self, place: Any, value: Any) -> None:
        if not isinstance(value, SymInt32):
            raise TypeError(f"expected SymInt32, got {type(value)}")
        super().__setitem__(place, value)


class TensorDesc:
    """A tensor's dtype and sizes."""

    def __init__(self, dtype: Any, *sizes: int) -> None:
        self.dtype = dtype
        self.shape_expr: list[Any] = [SymInt32(size) for size in sizes]

    def like(self) -> TensorDesc:
        made = TensorDesc(self.dtype)
        made.shape_expr = list(self.shape_expr)
        return made


class KernelLaunchParams:
    """A launch, one program of one thread unless said otherwise."""

    def __init__(self) -> None:
        self.grid_x: Any = 1
        self.block_x: Any = 1
        self.shared_mem: Any = 0


def cdiv(first: Any, second: Any) -> SymInt32:
    if isinstance(first, int) and isinstance(second, int):
        raise ValueError("one of the arguments must be symbolic")
    return SymInt32(-(-SymInt32(first).value // SymInt32(second).value))


class PluginModule:
    """`register` and `aot_impl`, with what they were given."""

    TensorDesc = TensorDesc
    ShapeExprs = ShapeExprs
    SymIntExprs = SymIntExprs
    SymInt32 = SymInt32
    KernelLaunchParams = KernelLaunchParams
    cdiv = staticmethod(cdiv)

    def __init__(self) -> None:
        self.descriptors: dict[str, Callable[..., Any]] = {}
        self.implementations: dict[str, Callable[..., Any]] = {}
        self.attributes: dict[str, list[str]] = {}
        self.writes: dict[str, int] = {}

    def register(self, identifier: str) -> Callable[..., Any]:
        def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
            if identifier in self.descriptors:
                raise ValueError(f"{identifier} is registered already")
            signature = inspect.signature(function)
            kinds = [p.annotation for p in signature.parameters.values()]
            tensors = [kind is TensorDesc for kind in kinds]
            if tensors != sorted(tensors, reverse=True) or not tensors[0]:
                raise ValueError("tensors come first")
            if any(kind not in (int, float, str, bool, bytes)
                   for kind, tensor in zip(kinds, tensors, strict=True) if not tensor):  # fmt: skip
                raise ValueError("an attribute has a type that is not serialised")
            returned = typing.get_args(signature.return_annotation)
            if not returned or any(each is not TensorDesc for each in returned):
                raise ValueError("the result must be a tuple of TensorDesc")
            self.descriptors[identifier] = function
            self.attributes[identifier] = list(signature.parameters)
            self.writes[identifier] = len(returned)
            return function

        return decorate

    def aot_impl(self, identifier: str) -> Callable[..., Any]:
        def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
            signature = inspect.signature(function)
            names = list(signature.parameters)
            if names != [*self.attributes[identifier], "outputs", "tactic"]:
                raise ValueError(f"{identifier}: {names} are not the arguments of an aot_impl")
            returned = typing.get_args(signature.return_annotation)
            if returned != (str, str, KernelLaunchParams, SymIntExprs):
                raise ValueError(f"{identifier}: {returned} is not what an aot_impl returns")
            self.implementations[identifier] = function
            return function

        return decorate
