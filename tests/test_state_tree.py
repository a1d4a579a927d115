"""Nested state as JSON and tensors, and back."""

from __future__ import annotations

import json
from collections import Counter, OrderedDict, namedtuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from padst_fx.state_tree import flatten, restore

PLAIN = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
TREES = st.recursive(
    PLAIN,
    lambda inner: st.lists(inner)
    | st.lists(inner).map(tuple)
    | st.dictionaries(st.text() | st.integers(), inner)
    | st.dictionaries(st.text(), st.integers()).map(Counter),
    max_leaves=6,
)


def there_and_back(value):
    tensors = {}
    form = json.loads(json.dumps(flatten(value, "extra", tensors), allow_nan=False))
    return restore(form, tensors), tensors


@settings(max_examples=50, deadline=None)
@given(TREES)
def test_everything_comes_back_with_its_type(tree):
    back, _ = there_and_back(tree)
    assert repr(back) == repr(tree)


def test_tensors_come_back_and_have_names_that_no_module_has():
    tree = {"a.b": torch.ones(2), "a": {"b": torch.zeros(3, dtype=torch.bool)}, 0: torch.tensor(2)}
    back, tensors = there_and_back(tree)
    assert list(back) == list(tree)
    assert torch.equal(back["a.b"], tree["a.b"]) and torch.equal(back["a"]["b"], tree["a"]["b"])
    assert back[0].shape == () and len(tensors) == 3
    assert all(name.startswith(".") for name in tensors)
    with pytest.raises(KeyError, match="module name can"):
        torch.nn.Module().add_module("", None)


def test_kin_of_plain_types():
    back, _ = there_and_back((np.float64(0.1), OrderedDict(a=1), torch.Size([2, 3])))
    assert back == (0.1, {"a": 1}, (2, 3))


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ({1, 2}, "set"),
        (lambda: 0, "function"),
        (namedtuple("Point", "x")(1), "Point"),
        (1j, "complex"),
        ({(1, 2): 3}, "dict"),
        (b"bytes", "bytes"),
    ],
)
def test_what_a_file_cannot_hold_is_named_with_its_place(value, kind):
    with pytest.raises(ValueError, match=rf"cannot save extra\.here\.1: it is a {kind}"):
        flatten({"here": [0, value]}, "extra", {})


@pytest.mark.parametrize(
    "form", [{}, {"a": 1, "b": 2}, {"tensor": "x"}, {"tensor": []}, {"dict": 3}, {"dict": [1]},
             {"set": [1]}, {"float": "x"}, {"float": None}, {"tuple": 3},
             {"dict": [[[1], 2]]}, {"counter": [["a"]]}],
)  # fmt: skip
def test_forms_that_flatten_does_not_make(form):
    with pytest.raises(ValueError):
        restore(form, {})
