"""`save_training` and `load_training`: all that a training needs to go on, in one file."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from padst_fx.checkpoint import Fit, content
from padst_fx.checkpoint_file import CheckpointError, read, write
from padst_fx.checkpoint_header import check_types
from padst_fx.compiled import plain_name
from padst_fx.dst import DST
from padst_fx.state_tree import flatten, restore
from padst_fx.training_fit import (
    Stateful,
    check_groups,
    check_parts,
    check_type,
    checked,
    flattened_parts,
    held_names,
    load_parts,
    parameter_names,
)

TRAINING = {"optimizer": dict, "dst": (dict, type(None)), "parts": dict, "gradients": dict}
OPTIMIZER = {"type": str, "parameters": list, "state": dict}


def save_training(
    model: nn.Module,
    path: str | os.PathLike[str],
    optimizer: torch.optim.Optimizer,
    dst: DST | None = None,
    *,
    parts: Mapping[str, Stateful] | None = None,
    extra: Any = None,
) -> None:
    """Write the model, the optimizer, the `DST` and more to `path`, whole or not at all.

    The file is one of `save`, with the states of the others and the gradients present now, so a
    training may stop at any point of a step. `parts` are further objects with a `state_dict`, by
    names of your own; `extra` is anything made of tensors, numbers, strings, None, lists, tuples
    and dicts, such as the step and `torch.get_rng_state()`. Raises what `save` raises, and
    `ValueError` for a state that holds anything else and a `DST` of another optimizer.
    """
    inner = checked(optimizer, dst)
    header, tensors = content(model)
    names = parameter_names(model)
    training = {
        "optimizer": {
            "type": type(inner).__name__,
            "parameters": held_names(inner, names),
            "state": flatten(inner.state_dict(), "optimizer", tensors),
        },
        "dst": None if dst is None else flatten(dst.state_dict(), "dst", tensors),
        "parts": flattened_parts(parts, tensors),
        "gradients": {
            name: flatten(parameter.grad, f"gradient.{name}", tensors)
            for parameter, name in names.items()
            if parameter.grad is not None
        },
        "extra": flatten(extra, "extra", tensors),
    }
    write(Path(path), {**header, "training": training}, tensors)


def load_training(
    model: nn.Module,
    path: str | os.PathLike[str],
    optimizer: torch.optim.Optimizer,
    dst: DST | None = None,
    *,
    parts: Mapping[str, Stateful] | None = None,
) -> Any:
    """Go on from a file of `save_training`; returns its `extra`.

    Everything is made as it was for the first step: `model` is sparsified alike (or comes from
    `load`), `optimizer`, `dst` and `parts` are of the same kinds and arguments. Tensors are copied
    in place; gradients become those of the file. Raises `CheckpointError` with the reason, and
    nothing changed, for a damaged file and for one that does not fit; what `load_state_dict` of a
    part raises comes as it is, with nothing changed either. Loading executes no code of the file's.
    """
    inner = checked(optimizer, dst)
    header, tensors = read(Path(path))
    if "training" not in header:
        raise CheckpointError(f"{path} holds a model only: read it with padst_fx.load")
    fit = Fit.of(model, header, tensors)
    if fit.replacements:
        raise CheckpointError(
            f"{next(iter(fit.replacements)) or 'the model'} is dense in the model and sparse in "
            "the checkpoint: sparsify the model alike, or load it, then build the optimizer"
        )
    training = _restored(header["training"], tensors)
    parts = parts or {}
    check_parts(training["parts"], parts)
    _check_optimizer(training["optimizer"], inner, model, None if dst is None else "soft_perm")
    _check_dst(training["dst"], dst, header)
    _check_gradients(training["gradients"], model)
    load_parts(training["parts"], parts)
    fit.load()
    if dst is not None:
        dst.load_state_dict(training["dst"])
    inner.load_state_dict(training["optimizer"]["state"])
    for parameter, name in parameter_names(model).items():
        gradient = training["gradients"].get(name)
        parameter.grad = None if gradient is None else gradient.to(parameter.device)
    return training["extra"]


def _restored(training: Any, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """The training's part of a header, with tensors in place of their names."""
    check_types("the header's training", training, TRAINING)
    optimizer = training["optimizer"]
    check_types("the header's optimizer", optimizer, OPTIMIZER)
    try:
        return {
            "optimizer": {**optimizer, "state": restore(optimizer["state"], tensors)},
            "dst": restore(training["dst"], tensors),
            "parts": {k: restore(part, tensors) for k, part in training["parts"].items()},
            "gradients": {k: restore(g, tensors) for k, g in training["gradients"].items()},
            "extra": restore(training.get("extra"), tensors),
        }
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"damaged: the header's training holds {error}") from error


def _check_optimizer(
    saved: dict[str, Any], optimizer: torch.optim.Optimizer, model: nn.Module, moved: str | None
) -> None:
    """Refuse the state of another optimizer, which torch would take if only the sizes agree."""
    check_type(saved["type"], optimizer)
    _check_form(saved)
    names = parameter_names(model)
    check_groups(saved["parameters"], held_names(optimizer, names), moved)
    shapes = {name: parameter.shape for parameter, name in names.items()}
    flat = [name for group in saved["parameters"] for name in group]
    for number, slots in saved["state"]["state"].items():
        name = flat[number]
        check_types(f"the optimizer's state of {name}", slots, {})
        for key, slot in slots.items():
            _check_slot(name, key, slot, shapes.get(name))
    _try_on_stand_in(saved, optimizer, {name: parameter for parameter, name in names.items()})


def _try_on_stand_in(
    saved: dict[str, Any], optimizer: torch.optim.Optimizer, parameters: dict[str, nn.Parameter]
) -> None:
    """Let a copy of the optimizer take the state, its tensors empty: what torch refuses half-way
    is so refused before anything has changed."""
    stand_in = copy.copy(optimizer)
    stand_in.param_groups = [
        {"params": [parameters.get(name, torch.empty(0)) for name in names]}
        for names in saved["parameters"]
    ]
    slots = {
        number: {
            key: slot.new_empty(0) if isinstance(slot, Tensor) and slot.numel() > 1 else slot
            for key, slot in of_one.items()
        }
        for number, of_one in saved["state"]["state"].items()
    }
    try:
        stand_in.load_state_dict({**saved["state"], "state": slots})
    except Exception as error:
        raise CheckpointError(
            f"damaged: {type(optimizer).__name__} cannot take its state: {error!r}"
        ) from error


def _check_form(saved: dict[str, Any]) -> None:
    """Refuse what is no optimizer's state, of which torch would take a part before it noticed."""
    state, groups, count = saved["state"], saved["parameters"], 0
    check_types("the optimizer's state", state, {"state": dict, "param_groups": list})
    if len(groups) != len(state["param_groups"]):
        raise CheckpointError("damaged: the optimizer's state has other groups than names")
    for names, group in zip(groups, state["param_groups"], strict=True):
        check_types("the optimizer's group", group, {"params": list})
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise CheckpointError(f"damaged: the names of a group are {names!r:.80}")
        if group["params"] != list(range(count, count + len(names))):
            raise CheckpointError("damaged: the optimizer's state has other groups than names")
        count += len(names)
    if not all(type(number) is int and 0 <= number < count for number in state["state"]):
        raise CheckpointError("damaged: the optimizer's state is of parameters in no group")


def _check_slot(name: str, key: str, slot: Any, shape: torch.Size | None) -> None:
    """A tensor beside sparse values has their shape: updates move units in it."""
    if not isinstance(slot, Tensor) or slot.numel() <= 1 or shape is None:
        return
    if name.split(".")[-1] in ("values", "alpha", "soft_perm") and slot.shape != shape:
        raise CheckpointError(
            f"the optimizer's {key} of {name} is {tuple(slot.shape)} in the checkpoint, "
            f"{name} is {tuple(shape)}"
        )


def _check_dst(saved: Any, dst: DST | None, header: dict[str, Any]) -> None:
    if (saved is None) != (dst is None):
        there, given = ("a", "none") if dst is None else ("no", "one")
        raise CheckpointError(f"the checkpoint has {there} state of a DST, but {given} was given")
    if dst is None:
        return
    layers = header["layers"]
    soft = [
        state.name
        for state in dst.states
        if layers.get(plain_name(state.name), {}).get("soft", False)
    ]
    try:
        dst.check_state_dict(saved, soft)
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"the state of the DST does not fit: {error}") from error


def _check_gradients(saved: dict[str, Any], model: nn.Module) -> None:
    present = {name: parameter for parameter, name in parameter_names(model).items()}
    for name, gradient in saved.items():
        like = present.get(name, gradient)
        fits = isinstance(gradient, Tensor) and gradient.shape == like.shape
        if not fits or gradient.dtype != like.dtype:
            raise CheckpointError(f"damaged: the gradient of {name} does not fit")
