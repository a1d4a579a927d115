"""A state of tensors and numbers as JSON, for checkpoints that hold text alone."""

from __future__ import annotations

import base64
import binascii
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from padst_fx.state_tree import flatten, restore


def to_json(state: Any) -> dict[str, Any]:
    """JSON for a state: its form, and its tensors as one safetensors file in base64.

    Raises `ValueError` for what `padst_fx.state_tree.flatten` does not take.
    """
    tensors: dict[str, Tensor] = {}
    form = flatten(state, "state", tensors)
    stored = base64.b64encode(safetensors.torch.save(tensors)).decode("ascii")
    return {"form": form, "tensors": stored}


def from_json(saved: Any) -> Any:
    """What `to_json` was given. Raises `ValueError` for what it would not have made."""
    if not isinstance(saved, dict) or not isinstance(saved.get("tensors"), str):
        raise ValueError(f"not a state: {saved!r:.80}")
    try:
        tensors = safetensors.torch.load(base64.b64decode(saved["tensors"], validate=True))
    except (binascii.Error, safetensors.SafetensorError, ValueError, KeyError) as error:
        raise ValueError(f"the tensors of a state are damaged: {error}") from error
    return restore(saved.get("form"), tensors)
