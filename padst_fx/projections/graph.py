"""Roles from the exported graph: every weight is followed to its matmul and on from there."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from padst_fx.projections.inventory import ATTENTION_ROLES, Candidate, candidates
from padst_fx.projections.projection import Projection

if TYPE_CHECKING:
    from torch.export import ExportedProgram

    from padst_fx.projections.interpreter import Interpreter


class TensorsOnly(nn.Module):
    """The model with its outputs flattened to tensors: torch.export refuses caches and the like."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *args: Any, **kwargs: Any) -> list[torch.Tensor]:
        return list(_tensors(self.model(*args, **kwargs)))


def _tensors(output: Any) -> Iterator[torch.Tensor]:
    if isinstance(output, torch.Tensor):
        yield output
    elif isinstance(output, Mapping):
        for item in output.values():
            yield from _tensors(item)
    elif isinstance(output, (tuple, list)):
        for item in output:
            yield from _tensors(item)
    elif dataclasses.is_dataclass(output):
        for field in dataclasses.fields(output):
            yield from _tensors(getattr(output, field.name))


def from_graph(model: nn.Module, example_inputs: Any) -> list[Projection]:
    """The projections of `model`, in registration order, with roles read from its graph alone."""
    from padst_fx.projections.interpreter import Interpreter

    args, kwargs = arguments(example_inputs)
    for name, parameter in model.named_parameters():
        if is_lazy(parameter):
            raise ValueError(
                f"cannot export {type(model).__name__}: parameter {name} is not initialised; "
                "run the model once, or call without example_inputs"
            )
    found = candidates(model)
    interpreter = Interpreter(model, found)
    interpreter.run(export(model, args, kwargs))
    return _in_registration_order(
        model, [_judged(c, interpreter) for c in found], interpreter.weights.raw_projections()
    )


def arguments(example_inputs: Any) -> tuple[tuple, dict[str, Any]]:
    """Example inputs as positional and keyword arguments, or a `TypeError`."""
    if isinstance(example_inputs, torch.Tensor):
        return (example_inputs,), {}
    if isinstance(example_inputs, tuple):
        return example_inputs, {}
    if isinstance(example_inputs, Mapping):
        if wrong := [key for key in example_inputs if not isinstance(key, str)]:
            raise TypeError(f"example_inputs must have argument names as keys, got {wrong[0]!r}")
        return (), dict(example_inputs)
    raise TypeError(
        "example_inputs must be a tensor, a tuple of arguments or a dict of keyword arguments, "
        f"got {type(example_inputs).__name__}"
    )


def export(model: nn.Module, args: tuple, kwargs: dict[str, Any]) -> ExportedProgram:
    """The exported program of `model` wrapped in TensorsOnly, without the fused attention path."""
    wrapper = TensorsOnly(model)
    wrapper.training = model.training
    hint = "; call without example_inputs to go by module names"
    return exported(wrapper, args, kwargs, name=type(model).__name__, hint=hint)


def exported(
    model: nn.Module,
    args: tuple,
    kwargs: dict[str, Any],
    dynamic_shapes: Any = None,
    name: str | None = None,
    hint: str = "",
) -> ExportedProgram:
    """The exported program, without the fused attention path; a `ValueError` with the cause where
    there is none."""
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*was assigned during export.*")
            return torch.export.export(
                model, args, kwargs, dynamic_shapes=dynamic_shapes, strict=False
            )
    except Exception as error:
        lines = str(error).strip().splitlines()
        cause = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
        raise ValueError(
            f"cannot export {name or type(model).__name__} with these example_inputs ({cause})"
            f"{hint}"
        ) from error
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)


def _judged(candidate: Candidate, interpreter: Interpreter) -> Projection:
    projection = candidate.projection
    evidence = interpreter.ledger[candidate.flow]
    role = interpreter.ledger.role(candidate.flow)
    if projection.kind == "attention":
        slot = ATTENTION_ROLES[projection.name.rpartition(".")[2]]
        role = slot if slot in evidence.slots else role
    unsupported = projection.unsupported
    if unsupported is None and not evidence.reached:
        unsupported = "the example inputs never reach it"
    if unsupported is None and evidence.readers:
        unsupported = f"its weight is read by {evidence.readers[0]}, outside its own forward"
    return replace(projection, role=role, unsupported=unsupported)


def _in_registration_order(
    model: nn.Module, known: list[Projection], raw: list[Projection]
) -> list[Projection]:
    order = {name: place for place, (name, _) in enumerate(model.named_modules())}
    return sorted([*known, *raw], key=lambda projection: order[projection.owner])
