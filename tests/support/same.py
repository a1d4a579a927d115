"""Equality of whole states."""

from __future__ import annotations

from typing import Any

import torch


def assert_same(found: Any, expected: Any) -> None:
    """Equal bit for bit, through dicts and lists."""
    assert type(found) is type(expected)
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key in expected:
            assert_same(found[key], expected[key])
    elif isinstance(expected, torch.Tensor):
        assert found.dtype == expected.dtype
        assert torch.equal(found, expected)
    else:
        assert found == expected
