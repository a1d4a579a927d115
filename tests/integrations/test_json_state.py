"""A state as JSON text and back."""

from __future__ import annotations

import json

import pytest
import torch
from same import assert_same

from padst_fx.integrations.json_state import from_json, to_json

STATE = {
    "steps": 3,
    "layers": {"a.b": {"bits": torch.arange(5, dtype=torch.uint8), "scores": None}},
    "energy": float("inf"),
    "names": ("x", 1, True),
    "empty": torch.empty(0, 3, dtype=torch.bfloat16),
}


def test_it_comes_back_from_text():
    assert_same(from_json(json.loads(json.dumps(to_json(STATE)))), STATE)


@pytest.mark.parametrize(
    "saved",
    [
        None,
        {},
        {"form": 1},
        {"form": 1, "tensors": "%"},
        {"form": 1, "tensors": "AAAA"},
        {**to_json(STATE), "form": {"tensor": "other"}},
        {**to_json(STATE), "form": {"unknown": 1}},
    ],
)
def test_what_it_would_not_have_written_is_refused(saved):
    with pytest.raises(ValueError, match=r"state|tensor"):
        from_json(saved)


def test_what_cannot_be_saved_is_named():
    with pytest.raises(ValueError, match=r"cannot save state\.a: it is a set"):
        to_json({"a": {1}})
