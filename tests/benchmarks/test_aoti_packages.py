"""What packages compute is checked before they are timed; seen with models in their place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks import aoti
from benchmarks.measured import DENSE
from benchmarks.settings import Settings

FORMS = [(DENSE, "package"), ("Block(8)", "package"), ("Block(8)", "torch.compile")]


@pytest.fixture
def packages(monkeypatch: pytest.MonkeyPatch) -> dict[str, nn.Module]:
    """By file name; compiling ahead of time takes longer than a test may."""
    made: dict[str, nn.Module] = {}

    def export(form: nn.Module, argument: Tensor, path: Path, **options: Any) -> Path:
        made[path.name] = form
        return path

    monkeypatch.setattr("padst_fx.export_aoti", export)
    monkeypatch.setattr("torch._inductor.aoti_load_package", lambda path: made[Path(path).name])
    monkeypatch.setattr(aoti, "compiled", lambda form, backend: form)
    return made


def small() -> aoti.Workload:
    torch.manual_seed(0)
    return aoti.Workload("small", lambda: aoti._linear(16), torch.randn(1, 16), ("0",))


@torch.no_grad()
def test_every_form_passes_its_check_and_another_models_does_not(
    packages: dict[str, nn.Module], tmp_path: Path
) -> None:
    found = list(aoti.contestants(small(), ["Block(8)"], tmp_path))
    assert [(each.structure, each.mode) for each in found] == FORMS
    assert all(each.check() <= 1 for each in found)
    assert list(packages) == ["dense.pt2", "Block(8).pt2"]
    expected = found[1].check.args[0]
    assert aoti.error_share(expected, found[0].call) > 1
    assert aoti.error_share(expected, lambda: expected * torch.nan) > 1


def test_the_table(packages: dict[str, nn.Module], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aoti, "workloads", lambda layers: [small(), small()])
    table = aoti.run(Settings(quick=True, rounds=2, only=("Block(8)",)))
    assert (table.name, table.wrong) == ("aoti", 0)
    assert [(row["structure"], row["mode"]) for row in table.rows] == FORMS
    assert all(row["workload"] == "small" and row["ratio"] > 0 for row in table.rows)
    assert all(word in str(table) for word in ("Block(8)", "torch.compile", "spread"))
    assert table.draw is not None and len(table.draw().axes) == 1


def test_a_wrong_package_has_no_time(
    packages: dict[str, nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(aoti, "workloads", lambda layers: [small()])
    load = torch._inductor.aoti_load_package
    monkeypatch.setattr(
        "torch._inductor.aoti_load_package",
        lambda path: load(path) if "dense" in path else lambda x: load(path)(x) * 1.01,
    )
    table = aoti.run(Settings(rounds=2, only=("Block(8)",)))
    assert [row["status"] for row in table.rows] == ["ok", "wrong", "ok"]
    assert table.wrong == 1 and table.rows[1]["microseconds"] is None
