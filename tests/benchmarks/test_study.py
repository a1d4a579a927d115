"""The study: grids, resuming, and the arithmetic of its report."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest
import torch

from benchmarks.study import report, results, runner, runs
from benchmarks.study.models import GPT
from benchmarks.study.report import Group, closed, difference
from benchmarks.study.runs import Run
from benchmarks.study.tasks import TASKS
from benchmarks.study.training import train

RUN = Run("teacher", "Diag()", "learned", "rigl", 0.9, 0, 12, 1e-2, 32, delta_t=4)


def grid(tmp_path, **content):
    path = tmp_path / "grid.json"
    path.write_text(json.dumps(content))
    return path


def test_a_grid_is_the_product_of_its_lists(tmp_path):
    path = grid(
        tmp_path,
        defaults={"task": "teacher", "steps": 10, "size": 32, "method": "rigl", "seed": [0, 1]},
        learning_rates={"teacher": {"dense": 0.1, "Diag": 0.2, "Block": 0.3}},
        grids=[
            {
                "structure": ["dense", "Diag(width=4)", "Block(4)"],
                "permutation": ["identity", "learned"],
                "sparsity": [0.8, 0.9],
            }
        ],
    )
    found = runs.read(path)
    # A dense run has no permutation and no sparsity, so it is there once per seed.
    assert len(found) == 2 + 2 * 2 * 2 * 2
    assert {(run.structure, run.learning_rate) for run in found} == {
        ("dense", 0.1), ("Diag(width=4)", 0.2), ("Block(4)", 0.3),
    }  # fmt: skip
    assert {(r.permutation, r.method, r.sparsity) for r in found if r.structure == "dense"} == {
        ("", "", 0.0)
    }


@pytest.mark.parametrize(
    ("entry", "words"), [({"widht": 3}, "has no widht"), ({}, "lacks .*sparsity")]
)
def test_a_wrong_grid_is_refused(tmp_path, entry, words):
    fields = {"task": "teacher", "structure": "Diag()", **entry}
    with pytest.raises(ValueError, match=words):
        runs.read(grid(tmp_path, grids=[fields]))


def test_rows_come_back_as_their_runs_and_are_not_trained_again(tmp_path):
    path = tmp_path / "study.csv"
    others = [replace(RUN, seed=seed, compiled=seed == 1) for seed in (1, 2)]
    for run in (RUN, others[0]):
        results.add(path, {**run.__dict__, "value": 0.5})
    assert [results.run_of(row) for row in results.read(path)] == [RUN, others[0]]
    assert runner.remaining([RUN, *others], path) == [others[1]]


def test_runs_are_trained_in_processes_and_a_failure_keeps_what_is_done(tmp_path):
    path = tmp_path / "study.csv"
    runner.train_all([RUN], path, 1)
    (row,) = results.read(path)
    again = train(RUN)
    assert float(row["value"]) == pytest.approx(again["value"], rel=1e-3)
    assert int(row["parameters"]) == 32 * 3 + 32
    with pytest.raises(runner.RunFailed, match="teacher Block\\(5\\)"):
        runner.train_all([replace(RUN, structure="Block(5)")], path, 1)
    assert len(results.read(path)) == 1


def group(structure, permutation, values):
    run = replace(RUN, structure=structure, permutation=permutation)
    return Group(run, dict(enumerate(values)))


def test_differences_are_paired_by_seed():
    one, other = group("a", "x", [3.0, 5.0, 8.0]), group("a", "y", [1.0, 2.0, 3.0])
    # Differences 2, 3, 5: mean 10/3, deviation 1.5275, t(0.975, 2) = 4.3027.
    found = difference(one, other)
    assert found == pytest.approx((10 / 3, 4.3027 * 1.5275 / 3**0.5), rel=1e-4)
    assert difference(one, group("a", "z", [1.0])) is None


def test_the_share_of_a_gap_and_no_gap():
    bad, good = group("d", "identity", [0.9, 0.91, 0.92]), group("u", "identity", [0.5, 0.52, 0.51])
    between = group("d", "learned", [0.7, 0.72, 0.71])
    # Covered 0.2, 0.19, 0.21 of 0.4, 0.39, 0.41: left 0, -0.005, 0.005, t(0.975, 2) = 4.3027.
    half = 4.3027 * 0.005 / 3**0.5 / 0.4
    assert closed(between, bad, good) == pytest.approx((0.5, half), rel=1e-4)
    assert closed(between, bad, group("u", "identity", [0.9, 0.92, 0.91])) is None
    # Nor is there one where the baseline is the worse one.
    assert closed(between, good, bad) is None


def test_the_share_is_of_the_seeds_that_all_have():
    bad, good = group("d", "identity", [0.9, 0.9, 0.8]), group("u", "identity", [0.5, 0.5, 0.35])
    assert closed(group("d", "soft", [0.7, 0.7]), bad, good) == pytest.approx((0.5, 0))
    assert closed(group("d", "soft", [0.7]), bad, good) == pytest.approx((0.5, float("inf")))


def test_a_report_is_made_from_the_file_alone(tmp_path):
    path = tmp_path / "study.csv"
    rigl = replace(RUN, structure="Unstructured()", permutation="identity")
    plain = replace(RUN, permutation="identity")
    dense = replace(RUN, structure="dense", permutation="", method="", sparsity=0.0)
    for base, value in ((dense, 0.1), (rigl, 0.2), (plain, 0.6), (RUN, 0.3)):
        for seed in (0, 1, 2):
            run = replace(base, seed=seed)
            results.add(path, {**run.__dict__, "value": value + 0.001 * seed})
    shown = report.text(path)
    assert "relative error (lower is better)" in shown and "75%" in shown
    assert report.draw(path).exists()


def test_a_report_compares_with_every_baseline_and_says_what_moved(tmp_path):
    path = tmp_path / "study.csv"
    rigl = replace(RUN, structure="Unstructured()", permutation="identity")
    bases = {
        replace(RUN, structure="dense", permutation="", method="", sparsity=0.0): 0.1,
        rigl: 0.3,
        replace(rigl, method="set"): 0.2,
        replace(RUN, permutation="identity"): 0.6,
        replace(RUN, permutation="random"): 0.5,
        RUN: 0.4,
    }
    for base, value in bases.items():
        for seed in (0, 1, 2):
            moved = f"0.{seed}00 0.500" if base is RUN else ""
            row = {**replace(base, seed=seed).__dict__, "value": value + 0.001 * seed}
            results.add(path, {**row, "moved": moved})
    lines = report.text(path).splitlines()
    header = next(each for each in lines if "structure" in each)
    line = next(each for each in lines if "learned" in each)
    columns = [each.strip() for each in re.split(r"  +", header.strip())]
    cells = dict(zip(columns, re.split(r"  +", line.strip()), strict=True))
    # Against dense, RigL, SET, identity and random; two thirds of the way to RigL, half to SET.
    expected = {
        "less dense": "+0.3", "less RigL's": "+0.1", "less SET's": "+0.2",
        "less identity's": "-0.2", "less random's": "-0.1",
        "gap to RigL closed": "67%", "to SET": "50%", "moved, by layer": "0.10 0.50",
    }  # fmt: skip
    assert {name: cells[name].partition(" ±")[0] for name in expected} == expected


def test_other_settings_are_named_and_compared_with_the_usual_ones(tmp_path):
    path = tmp_path / "study.csv"
    rigl = replace(RUN, structure="Unstructured()", permutation="identity", delta_t=50)
    plain = replace(rigl, structure="Diag()")
    other = replace(plain, permutation="learned", drop_fraction=0.5, permuted="*.fc1")
    for base, value in ((rigl, 0.2), (plain, 0.6), (other, 0.5)):
        for seed in (0, 1):
            results.add(path, {**replace(base, seed=seed).__dict__, "value": value + 1e-3 * seed})
    (line,) = (line for line in report.text(path).splitlines() if "learned" in line)
    assert "drop 0.5, permuted *.fc1" in line and "25%" in line and "-0.1 ±" in line


def test_of_several_rates_none_is_compared_with(tmp_path):
    path = tmp_path / "study.csv"
    for rate in (0.1, 0.2):
        for structure in ("Unstructured()", "Diag()"):
            run = replace(RUN, structure=structure, permutation="identity", learning_rate=rate)
            for seed in (0, 1):
                results.add(path, {**replace(run, seed=seed).__dict__, "value": rate + seed})
    shown = report.text(path)
    assert "0.7071" in shown and "+" not in shown
    assert all("%" not in line for line in shown.splitlines() if "rigl" in line)


def test_the_large_text_model_has_the_shape_of_gpt2_small():
    with torch.device("meta"):
        model = TASKS["text-gpt2"].model(768)
    shapes = {tuple(m.weight.shape) for m in model.modules() if isinstance(m, torch.nn.Linear)}
    assert shapes == {(2304, 768), (768, 768), (3072, 768), (768, 3072)}
    assert len(model.blocks) == 12 and model.blocks[0].bias.shape == (12, 512, 512)


def test_text_models_see_no_later_byte():
    torch.manual_seed(0)
    model = GPT(32, 2, 4, 8).eval()
    tokens = torch.randint(256, (3, 8))
    later = tokens.clone()
    later[:, 5:] = (tokens[:, 5:] + 1) % 256
    first, second = model(tokens), model(later)
    torch.testing.assert_close(first[:, :5], second[:, :5])
    assert not torch.allclose(first[:, 5:], second[:, 5:])


# The large one differs from "text" in its numbers alone, and takes a minute.
@pytest.mark.parametrize("name", [name for name in TASKS if name != "text-gpt2"])
def test_every_task_trains_and_is_measured(name):
    size = 16 if name.startswith("digits") else 32
    row = train(replace(RUN, task=name, size=size, structure="Diag()", steps=4, delta_t=2))
    assert torch.isfinite(torch.tensor(row["value"]))
    assert row["exploration"] > 0 and row["moved"]


def test_a_compiled_run_ends_where_an_eager_one_does():
    rows = [train(replace(RUN, compiled=compiled)) for compiled in (False, True)]
    assert rows[1]["value"] == pytest.approx(rows[0]["value"], rel=1e-3)
    assert rows[1]["exploration"] == rows[0]["exploration"] > 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("structure", ["dense", "Block(4)"])
def test_a_run_on_a_gpu_is_compiled_and_named(structure):
    run = replace(RUN, structure=structure, permutation="identity", compiled=True)
    if structure == "dense":
        run = replace(run, permutation="", method="", sparsity=0.0)
    row = train(run, "cuda")
    assert torch.isfinite(torch.tensor(row["value"]))
    assert row["device"] == torch.cuda.get_device_name()
    assert row["peak_mib"] > 0
