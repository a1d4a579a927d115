"""Nested state (dicts, lists, numbers, tensors) as plain JSON and named tensors, and back."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def flatten(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    """JSON for `value`; its tensors are added to `tensors`, copied to the CPU.

    Takes None, booleans, numbers, strings, tensors, and lists, tuples, dicts and Counters of them
    (keys: strings and integers). JSON's own types stand for themselves; another is an object with
    one key, its kind. A tensor is stored as `.<number>.<path>`: a name that no module can have.
    Raises `ValueError`, with the path, for anything else.
    """
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {"float": repr(float(value))}
    if isinstance(value, Tensor):
        name = f".{len(tensors)}.{path}"
        tensors[name] = value.detach().cpu().contiguous().clone()
        return {"tensor": name}
    if isinstance(value, list):
        return [flatten(item, f"{path}.{i}", tensors) for i, item in enumerate(value)]
    if type(value) in (tuple, torch.Size):
        return {"tuple": flatten(list(value), path, tensors)}
    if isinstance(value, dict) and all(isinstance(key, (str, int)) for key in value):
        kind = "counter" if isinstance(value, Counter) else "dict"
        items = [[key, flatten(item, f"{path}.{key}", tensors)] for key, item in value.items()]
        return {kind: items}
    raise ValueError(
        f"cannot save {path}: it is a {type(value).__name__}; a file holds tensors, numbers, "
        "strings, None, and lists, tuples and dicts of them"
    )


def restore(form: Any, tensors: dict[str, Tensor]) -> Any:
    """What `flatten` was given. Raises `ValueError` for what it would not have made."""
    if form is None or isinstance(form, (bool, int, float, str)):
        return form
    if isinstance(form, list):
        return [restore(item, tensors) for item in form]
    if isinstance(form, dict) and len(form) == 1:
        kind, content = next(iter(form.items()))
        if kind in _KINDS:
            try:
                return _KINDS[kind](content, tensors)
            except (KeyError, TypeError) as error:
                raise ValueError(f"not a {kind}: {content!r:.80}") from error
    raise ValueError(f"not a state: {form!r:.80}")


def _pairs(content: Any, tensors: dict[str, Tensor]) -> dict[Any, Any]:
    return {key: restore(item, tensors) for key, item in content}


_KINDS: dict[str, Callable[[Any, dict[str, Tensor]], Any]] = {
    "float": lambda content, _: float(content),
    "tensor": lambda content, tensors: tensors[content],
    "tuple": lambda content, tensors: tuple(restore(content, tensors)),
    "dict": _pairs,
    "counter": lambda content, tensors: Counter(_pairs(content, tensors)),
}
