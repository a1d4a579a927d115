"""Checks of a saved state's fields, before any of it is used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

MOST = 2**48


def check_fields(place: str, state: Any, fields: Mapping[str, Any]) -> None:
    """Raise `ValueError` unless `state` is a dict that has every field, of its type or types.

    Integers are counts: not negative, and small enough to reckon with.
    """
    if not isinstance(state, dict):
        raise ValueError(f"{place}: it is a {type(state).__name__}")
    if missing := sorted(fields.keys() - state.keys()):
        raise ValueError(f"{place}: it lacks {', '.join(missing)}")
    for name, kind in fields.items():
        value = state[name]
        count = kind is not int or (type(value) is int and 0 <= value < MOST)
        if not (isinstance(value, kind) and count):
            raise ValueError(f"{place}: {name} is {value!r:.80}")


def check_shape(name: str, tensor: Tensor | None, shape: Sequence[int]) -> None:
    """Raise `ValueError` for a tensor, where there is one, of another shape."""
    if tensor is not None and tensor.shape != tuple(shape):
        raise ValueError(f"{name} has shape {tuple(tensor.shape)} in the state, not {tuple(shape)}")


def check_generator(state: Tensor) -> None:
    """Raise `ValueError` for what is not the state of a CPU generator."""
    try:
        torch.Generator().set_state(state)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"not the state of a random generator: {error}") from error
