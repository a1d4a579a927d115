"""The examples that train in other libraries' loops, run here as programs run them."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("library", ["transformers", "lightning"])
@pytest.mark.filterwarnings("ignore")
def test_the_example_stops_and_goes_on_bit_for_bit(library, monkeypatch, tmp_path, capsys):
    monkeypatch.syspath_prepend(str(ROOT))
    example = import_module(f"examples.train_with_{library}")
    monkeypatch.setattr("sys.argv", [library, str(tmp_path)])
    example.main()
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].endswith("went on: every tensor the same: True")
    assert sum("diagonals exchanged" in line for line in lines) >= 5
    losses = [float(line.split()[-1]) for line in lines if "loss" in line]
    assert losses[-1] < losses[0]
