"""Exported models are checked before they are timed; seen on a small transformer."""

from __future__ import annotations

from pathlib import Path

import model_zoo
import pytest
import torch
from torch import nn

from benchmarks import __main__ as command
from benchmarks import onnx_runtime
from benchmarks.frozen import Logits
from benchmarks.measured import DENSE
from benchmarks.onnx_runtime import contestants
from benchmarks.settings import Settings

IMAGES = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def small() -> nn.Module:
    torch.manual_seed(0)
    return model_zoo.get("vit").build()


@torch.no_grad()
def test_every_file_passes_its_check_and_another_models_does_not(tmp_path: Path) -> None:
    dense = Logits(small()).eval()
    found = list(contestants(dense, IMAGES, ["Diag()", "Block(8)"], 1, tmp_path))
    assert [each.structure for each in found] == [DENSE, "Diag()", "Block(8)"]
    for contestant in found:
        assert contestant.check() <= 1, contestant.name
    assert found[1].extra["stored"] < found[0].extra["stored"] == 1
    expected = found[0].check.args[0]
    for wrong in (found[1].call(), torch.full_like(expected, torch.nan)):
        assert onnx_runtime.error_share(expected, lambda wrong=wrong: wrong) > 1


def test_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    dense = small()
    monkeypatch.setattr(onnx_runtime, "vit_b16", lambda layers: dense)
    monkeypatch.setattr(torch, "randn", lambda *_: IMAGES)
    table = onnx_runtime.run(Settings(quick=True, rounds=2, only=("Block(8)",)))
    assert (table.name, table.wrong) == ("onnx", 0)
    assert [row["structure"] for row in table.rows] == [DENSE, "Block(8)"]
    assert all(row["ratio"] > 0 and row["megabytes"] > 0 for row in table.rows)
    assert "Block(8)" in str(table)


def test_structures_of_a_table_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.arguments(["onnx", "--only", "Block(64)"]).only == ["Block(64)"]
    for tables in (["kernels"], ["onnx", "kernels"]):
        with pytest.raises(SystemExit):
            command.arguments([*tables, "--only", "Block(64)"])
        assert "unknown structure 'Block(64)'" in capsys.readouterr().err
