"""A step as the text that a plugin carries as its attribute."""

from __future__ import annotations

import importlib
import json
from typing import Any

import torch

from padst_fx.export.tensorrt.step import Step


def encoded(step: Step) -> str:
    """A step as text."""
    fields = {
        **{name: getattr(step, name) for name in ("reads", "tokens_from", "integers", "results")},
        "kernel": [step.kernel.fn.__module__, step.kernel.fn.__name__],
        "dtypes": [str(dtype).removeprefix("torch.") for dtype in step.dtypes],
        "programs": step.programs,
        "constants": step.constants,
    }
    return json.dumps(fields, separators=(",", ":"))


def decoded(text: str) -> Step:
    """The step that a text stands for."""
    fields: dict[str, Any] = json.loads(text)
    module, name = fields["kernel"]
    return Step(
        kernel=getattr(importlib.import_module(module), name),
        reads=tuple(fields["reads"]),
        dtypes=tuple(getattr(torch, dtype) for dtype in fields["dtypes"]),
        tokens_from=fields["tokens_from"],
        integers=tuple(fields["integers"]),
        results=tuple(map(tuple, fields["results"])),
        programs=fields["programs"],
        constants=fields["constants"],
    )
