"""`save_sharded` and `load_sharded` in one process: round trips, and what is refused.

On several ranks: `tests/test_distributed.py`.
"""

from __future__ import annotations

import pytest
from distributed_cases import Case, Training
from same import assert_same

import padst_fx
from padst_fx import CheckpointError


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
