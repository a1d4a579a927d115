"""The example runs as its Makefile target runs it, in its quick form."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import padst_fx

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    command = [sys.executable, "-m", "examples.digits_vit", str(folder), "--quick"]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    (folder / "stdout").write_text(ran.stdout)
    return folder


@pytest.fixture(scope="module")
def results(output: Path) -> dict[str, dict[str, float]]:
    rows = json.loads((output / "results.json").read_text())["results"]
    return {row["name"]: row for row in rows}


def test_every_contestant_is_in_the_table(output: Path, results: dict[str, object]) -> None:
    printed = (output / "stdout").read_text()
    assert list(results) == ["dense", "RigL", "Diag", "Block"]
    assert all(name in printed for name in results)


def test_masks_change_without_recompilation(results: dict[str, dict[str, float]]) -> None:
    graphs = {name: row["graphs"] for name, row in results.items()}
    assert graphs == {"dense": 1, "RigL": 2, "Diag": 2, "Block": 2}


@pytest.mark.parametrize(("name", "share"), [("Diag", 0.1), ("Block", 0.1), ("RigL", 1.0)])
def test_sizes_are_those_of_the_stored_weights(
    results: dict[str, dict[str, float]], name: str, share: float
) -> None:
    # Two blocks of width 80: qkv, out_proj, fc1, fc2, each with a bias. AdamW keeps two moments
    # of 4 bytes for each number and a 4-byte step count for each tensor.
    weights, biases, tensors = 2 * 12 * 80 * 80, 2 * 9 * 80, 2 * 4 * 2
    stored = round(share * weights) + biases
    assert results[name]["projection_parameters"] == stored
    assert results[name]["projection_optimizer_bytes"] == 8 * stored + 4 * tensors
    outside = results["dense"]["parameters"] - weights - biases
    assert results[name]["parameters"] == stored + outside


def test_accuracies_and_ratios_are_plausible(results: dict[str, dict[str, float]]) -> None:
    for row in results.values():
        assert all(0 <= accuracy <= 1 for accuracy in row["accuracies"])
        assert row["step_seconds"] > 0
    assert results["dense"]["step_time_ratio"] == 1


def test_the_picture_is_a_png(output: Path) -> None:
    assert (output / "masks.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


def test_redraw_keeps_storage_and_changes_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    from examples.digits_vit.model import VisionTransformer, redraw

    model = VisionTransformer()
    padst_fx.sparsify(model, "diag", 0.9, include="blocks.*", init="random")
    layer = model.blocks[0].fc1
    tensors = [*model.parameters(), layer.index]
    addresses = [tensor.data_ptr() for tensor in tensors]
    redraw(model, 0)
    first = [tensor.detach().clone() for tensor in tensors]
    redraw(model, 1)
    assert not torch.equal(first[-1], layer.index)
    redraw(model, 0)
    for tensor, before in zip(tensors, first, strict=True):
        torch.testing.assert_close(tensor, before, rtol=0, atol=0)
    assert [tensor.data_ptr() for tensor in tensors] == addresses
    norms = [module for module in model.modules() if isinstance(module, nn.LayerNorm)]
    assert all(bool((norm.weight == 1).all()) for norm in norms)
