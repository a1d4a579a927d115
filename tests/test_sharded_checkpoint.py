"""Trainings on several ranks that are saved, killed, and gone on with."""

from __future__ import annotations

import shutil
import time

import pytest
import resuming_worker as worker
import torch
from distributed_worker import Case, Training
from ranks import torchrun

import padst_fx
from padst_fx import CheckpointError

LONGEST_STOP = 30  # seconds


def assert_same(found, expected):
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


def run(folder, ranks, *arguments):
    process = torchrun(ranks, "resuming_worker.py", folder, *arguments)
    assert process.returncode == 0, process.stderr[-3000:]


def kept(folder, name):
    return torch.load(folder / f"{name}.pt", weights_only=True)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a training of two ranks that nothing happened to."""
    folder = tmp_path_factory.mktemp("whole")
    run(folder, 2)
    return folder


def test_a_killed_rank_stops_the_others_and_a_restart_goes_on_bit_for_bit(whole, tmp_path):
    process = torchrun(2, "resuming_worker.py", tmp_path, 10)
    stopped = time.time()
    assert process.returncode != 0
    assert "SIGKILL" in process.stderr
    assert worker.newest(tmp_path) == 8
    assert stopped - (tmp_path / "killed").stat().st_mtime < LONGEST_STOP
    run(tmp_path, 2)
    for rank in range(2):
        name = f"end on {rank} of 2"
        assert_same(kept(tmp_path, name), kept(whole, name))


def test_four_ranks_go_on_from_two_and_one_from_four(whole, tmp_path):
    for step in range(worker.EVERY, 9, worker.EVERY):
        for case in worker.CASES:
            path = worker.checkpoint(whole, case, step)
            shutil.copytree(path, tmp_path / path.name)
    run(tmp_path, 4)
    saved = kept(whole, "step 8 on 0 of 2")
    for rank in range(4):
        assert_same(kept(tmp_path, f"loaded by {rank} of 4"), saved)
        assert_same(kept(tmp_path, f"end on {rank} of 4"), kept(tmp_path, "end on 0 of 4"))
    for case in worker.CASES:
        training = Training(case)
        path = worker.checkpoint(tmp_path, case, 12)
        padst_fx.load_sharded(path, training.model, training.optimizer, training.dst)
        assert_same(training.everything(), kept(tmp_path, "step 12 on 0 of 4")[str(case)])


@pytest.fixture
def trained():
    training = Training(Case("alone", "diag", "rigl", "learned"))
    for step in range(1, 4):
        training.backward(step)
        training.step()
    return training


def load(path, training):
    padst_fx.load_sharded(path, training.model, training.optimizer, training.dst)


def save(path, training):
    padst_fx.save_sharded(path, training.model, training.optimizer, training.dst)


def test_one_process_saves_and_loads_as_well(trained, tmp_path):
    save(tmp_path / "there", trained)
    other = Training(trained.case)
    load(tmp_path / "there", other)
    assert_same(other.everything(), trained.everything())
    for training in (trained, other):
        for step in range(4, 9):
            training.backward(step)
            training.step()
    assert_same(other.everything(), trained.everything())


def test_saving_before_the_first_step_counts_no_step(tmp_path):
    fresh = Training(Case("alone", "diag", "rigl"))
    save(tmp_path / "there", fresh)
    assert not fresh.dst.step()
    assert fresh.dst.steps == 0


def test_scores_of_one_rank_are_not_saved(trained, tmp_path):
    trained.backward(4)
    with pytest.raises(ValueError, match=r"first has collected scores.*after dst.step\(\)"):
        save(tmp_path / "there", trained)
    assert not (tmp_path / "there").exists()


def test_what_does_not_fit_is_refused_and_changes_nothing(trained, tmp_path):
    save(tmp_path / "there", trained)
    other = Training(Case("alone", "block", "rigl", "learned"))
    before = other.everything()
    with pytest.raises(ValueError, match=r"first: the state is of DiagPattern"):
        load(tmp_path / "there", other)
    with pytest.raises(CheckpointError, match=r"no complete checkpoint at .*nowhere"):
        load(tmp_path / "nowhere", other)
    (tmp_path / "there" / ".metadata").unlink()
    with pytest.raises(CheckpointError, match=r"no complete checkpoint.*no \.metadata"):
        load(tmp_path / "there", other)
    assert_same(other.everything(), before)


def test_a_damaged_topology_is_refused_and_changes_nothing(trained, tmp_path):
    trained.model.first.perm[0] = trained.model.first.perm[1]
    save(tmp_path / "there", trained)
    other = Training(trained.case)
    before = other.everything()
    with pytest.raises(CheckpointError, match="first is damaged: perm is not a permutation"):
        load(tmp_path / "there", other)
    assert_same(other.everything(), before)
