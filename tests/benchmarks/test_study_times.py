"""The study's times: which kinds are measured, and accuracy against time."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.study import pareto, results, times
from benchmarks.study.report import Group
from benchmarks.study.runs import Run

RUN = Run("text", "Block(4)", "learned", "rigl", 0.9, 3, 12, 1e-2, 32, delta_t=2)
DENSE = replace(RUN, structure="dense", permutation="", method="", sparsity=0.0)


def test_seeds_steps_and_rates_take_no_other_time():
    alike = [replace(RUN, seed=seed, learning_rate=rate) for seed, rate in ((0, 0.1), (1, 0.2))]
    other = replace(RUN, permutation="soft")
    found = times.kinds([DENSE, *alike, replace(RUN, steps=99), other])
    assert [(run.permutation, run.seed) for run in found] == [("learned", 0), ("soft", 0)]


def test_names_tell_methods_and_settings_apart():
    other = replace(RUN, method="set", permutation="identity", drop_fraction=0.1)
    names = [pareto.Point(Group(run, {0: 1.0}), {}, {}).name for run in (RUN, other, DENSE)]
    set_name = "Block(4) set 90% delta_t 2, drop 0.1"
    assert names == ["Block(4) learned 90% delta_t 2", set_name, "dense"]


@pytest.mark.parametrize("permutation", ["learned", "soft"])
def test_a_kind_is_timed_in_turn_with_dense_and_only_once(tmp_path, monkeypatch, permutation):
    monkeypatch.setattr(times, "STEP_ROUNDS", 2)
    run = replace(RUN, task="teacher", structure="Diag()", permutation=permutation)
    row = times.measure(run)
    for axis in pareto.AXES:
        dense, own = row[f"dense_{axis}_ms"], row[f"{axis}_ms"]
        assert row[f"{axis}_ratio"] == pytest.approx(dense / own, rel=0.05)
        assert row[f"{axis}_ratio_low"] <= row[f"{axis}_ratio_high"]
    path = tmp_path / "grid_times.csv"
    results.add(path, row)
    times.measure_all([run], path)
    assert len(results.read(path)) == 1


def written(tmp_path, **kinds):
    """Files of a grid: for each structure its two perplexities, and dense time by its own."""
    path = tmp_path / "grid.csv"
    for structure, (values, ratio) in kinds.items():
        run = DENSE if structure == "dense" else replace(RUN, structure=structure)
        for seed, value in enumerate(values):
            results.add(path, {**replace(run, seed=seed).__dict__, "value": value})
        if ratio is not None:
            columns = {f"{axis}_ratio{end}": ratio for axis in pareto.AXES
                       for end in ("", "_low", "_high")}  # fmt: skip
            results.add(pareto.times_path(path), {**run.__dict__, **columns})
    return path


def test_what_none_beats_is_marked(tmp_path):
    path = written(
        tmp_path, dense=((5.0, 5.2), None), fast=((5.4, 5.6), 2.0), worse=((6.0, 6.0), 1.5),
        fastest=((6.5, 6.5), 4.0), untimed=((1.0, 1.0), None),
    )  # fmt: skip
    found = pareto.points(path)
    assert [point.name for point in found] == [
        "dense", "fast learned 90% delta_t 2", "worse learned 90% delta_t 2",
        "fastest learned 90% delta_t 2",
    ]  # fmt: skip
    assert found[1].times == {"step": 0.5, "latency": 0.5}
    best = [point.name for point in pareto.best(found, "step")]
    assert [name.split()[0] for name in best] == ["dense", "fast", "fastest"]
    shown = pareto.text(path)
    assert "0.50 (0.50-0.50)*" in shown and "0.67 (0.67-0.67) " in shown
    assert pareto.draw(path).exists()


def test_nothing_timed_is_nothing_drawn(tmp_path):
    path = written(tmp_path, dense=((5.0, 5.2), None), fast=((5.4, 5.6), None))
    assert pareto.draw(path) is None and pareto.text(path) == ""
