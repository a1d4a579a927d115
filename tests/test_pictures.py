"""Without matplotlib a picture says what to install."""

from __future__ import annotations

import sys

import pytest

from padst_fx.pictures import figure


def test_the_extra_is_named_where_matplotlib_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'padst_fx\[pictures\]'"):
        figure()


def test_settings_reach_the_figure():
    assert figure(figsize=(3, 2)).get_size_inches().tolist() == [3, 2]
