"""`save_sharded` and `load_sharded` in one process: round trips, and what is refused.

On several ranks: `tests/test_distributed.py`.
"""

from __future__ import annotations

import json
import os
import pickle

import pytest
import torch
from distributed_cases import HARDEN_AT, Case, Training
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


def test_parts_and_extra_come_back(tmp_path):
    def made():
        training = Training(Case("alone", "diag", "rigl", "learned"))
        return training, torch.optim.lr_scheduler.OneCycleLR(training.optimizer, 0.1, 20)

    def train(training, scheduler, steps):
        for step in steps:
            training.backward(step)
            training.step()
            scheduler.step()

    def arguments(training):
        return tmp_path / "there", training.model, training.optimizer, training.dst

    first, scheduler = made()
    train(first, scheduler, range(1, 6))
    extra = {"step": 5, "random": torch.get_rng_state(), "best": (0.5, None)}
    parts = {"scheduler": scheduler}
    padst_fx.save_sharded(*arguments(first), parts=parts, extra=extra)
    second, other = made()
    for wrong in ({}, {"scheduler": other, "scaler": torch.amp.GradScaler("cpu")}):
        before = second.everything()
        with pytest.raises(CheckpointError, match=r"the parts \['scheduler'\], given are"):
            padst_fx.load_sharded(*arguments(second), parts=wrong)
        assert_same(second.everything(), before)
    found = padst_fx.load_sharded(*arguments(second), parts={"scheduler": other})
    assert_same(found, extra)
    assert_same(other.state_dict(), scheduler.state_dict())
    for training, rates in ((first, scheduler), (second, other)):
        train(training, rates, range(6, 12))
    assert_same(second.everything(), first.everything())
    assert first.optimizer.param_groups[0]["lr"] == second.optimizer.param_groups[0]["lr"]


def test_a_part_that_fails_leaves_everything_as_it_was(trained, tmp_path):
    class Part:
        def state_dict(self):
            return {"count": 1}

        def load_state_dict(self, state):
            if state["count"] == 1 and self.strict:
                self.strict = False
                raise RuntimeError("not this one")

    part = Part()
    padst_fx.save_sharded(
        tmp_path / "there", trained.model, trained.optimizer, trained.dst, parts={"part": part}
    )
    other, part.strict = Training(trained.case), True
    before = other.everything()
    with pytest.raises(RuntimeError, match="not this one"):
        padst_fx.load_sharded(
            tmp_path / "there", other.model, other.optimizer, other.dst, parts={"part": part}
        )
    assert_same(other.everything(), before)


def test_what_no_checkpoint_can_hold_is_refused_before_anything_is_written(trained, tmp_path):
    there = tmp_path / "there"
    with pytest.raises(ValueError, match=r"cannot save extra\.a: it is a set"):
        padst_fx.save_sharded(
            there, trained.model, trained.optimizer, trained.dst, extra={"a": {1}}
        )
    assert not there.exists()


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
    assert_same(other.everything(), before)


def adam(*groups, **settings):
    return torch.optim.Adam([{"params": group} for group in groups], 0.02, **settings)


def sgd(parameters):
    return torch.optim.SGD(parameters, 0.02)


OPTIMIZERS = {
    "another type": (sgd, "has the state of Adam, the optimizer is SGD"),
    "another order": (lambda p: adam(p[::-1]), "group 0 holds other parameters .* their order"),
    "one fewer": (lambda p: adam(p[:-1]), r"group 0 .* they differ in \['head.bias'\]"),
    "two groups": (lambda p: adam(p[:2], p[2:]), "group 0 holds other parameters"),
    "one group more": (
        lambda p: adam(p, [torch.nn.Parameter(torch.zeros(1))]),
        "the optimizer's group 1 holds other parameters",
    ),
    "more slots": (
        lambda p: adam(p, amsgrad=True),
        r"keeps \['exp_avg', 'exp_avg_sq', 'max_exp_avg_sq', 'step'\] of first.values, "
        r"in the checkpoint there are \['exp_avg', 'exp_avg_sq', 'step'\]",
    ),
}


@pytest.mark.parametrize("stepped", [False, True], ids=["new", "in training"])
@pytest.mark.parametrize("other", OPTIMIZERS)
def test_another_optimizer_is_refused_and_changes_nothing(trained, tmp_path, other, stepped):
    """The checkpoint's permutations are soft and the model's no more, so that a load would begin
    by making them soft again."""
    soft = Training(Case("alone", "diag", "rigl", "soft"))
    save(tmp_path / "there", soft)
    build, message = OPTIMIZERS[other]
    training = Training(soft.case)
    for step in range(1, HARDEN_AT + 1):
        training.backward(step)
        training.step()
    assert training.model.first.soft_perm is None
    training.dst.close()
    training.optimizer = build(list(training.model.parameters()))
    training.dst = padst_fx.DST(training.model, training.optimizer, "rigl", delta_t=2)
    if stepped:
        training.backward(HARDEN_AT + 1)
        training.optimizer.step()
        training.dst.step()
    before = training.everything(), [p.grad for p in training.model.parameters()]
    with pytest.raises(CheckpointError, match=message):
        load(tmp_path / "there", training)
    assert_same(training.everything(), before[0])
    assert all(p.grad is g for p, g in zip(training.model.parameters(), before[1], strict=True))


def test_a_setting_of_a_group_that_was_not_saved_stays(trained, tmp_path):
    save(tmp_path / "there", trained)
    other = Training(trained.case)
    torch.optim.lr_scheduler.ConstantLR(other.optimizer, 0.5)
    load(tmp_path / "there", other)
    assert_same(other.everything(), trained.everything())
    assert other.optimizer.param_groups[0]["lr"] == 0.02
    assert other.optimizer.param_groups[0]["initial_lr"] == 0.02


def flip(path, bit):
    content = bytearray(path.read_bytes())
    content[bit // 8 % len(content)] ^= 1 << bit % 8
    path.write_bytes(content)


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


DAMAGE = {
    "a bit of the tensors": lambda f: flip(next(f.glob("*.distcp")), 12345),
    "a bit of the metadata": lambda f: flip(f / ".metadata", 54321),
    "a truncated file": lambda f: os.truncate(next(f.glob("*.distcp")), 100),
    "a missing file": lambda f: next(f.glob("*.distcp")).unlink(),
    "a missing seal": lambda f: (f / "padst_fx.json").unlink(),
    "half a seal": lambda f: os.truncate(f / "padst_fx.json", 50),
    "a seal of other things": lambda f: edit(f / "padst_fx.json", sha256=["x"]),
    "a seal that leads elsewhere": lambda f: edit(f / "padst_fx.json", sha256={"../x": "y"}),
    "another version": lambda f: edit(f / "padst_fx.json", version=1),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_what_is_damaged_is_refused_before_it_is_read(trained, tmp_path, monkeypatch, damage):
    save(tmp_path / "there", trained)
    DAMAGE[damage](tmp_path / "there")
    other = Training(trained.case)
    before = other.everything()
    monkeypatch.setattr(pickle, "load", None)
    with pytest.raises(CheckpointError, match=r"is damaged|no complete checkpoint|version 1"):
        load(tmp_path / "there", other)
    assert_same(other.everything(), before)


def test_a_complete_checkpoint_is_not_written_over_and_a_broken_one_is(trained, tmp_path):
    save(tmp_path / "there", trained)
    with pytest.raises(FileExistsError, match="save into another folder"):
        save(tmp_path / "there", trained)
    other = Training(trained.case)
    load(tmp_path / "there", other)
    (tmp_path / "there" / "padst_fx.json").unlink()
    trained.backward(4)
    trained.step()
    save(tmp_path / "there", trained)
    load(tmp_path / "there", other)
    assert_same(other.everything(), trained.everything())


def test_a_damaged_topology_is_refused_and_changes_nothing(trained, tmp_path):
    trained.model.first.perm[0] = trained.model.first.perm[1]
    save(tmp_path / "there", trained)
    other = Training(trained.case)
    before = other.everything()
    with pytest.raises(CheckpointError, match="first is damaged: perm is not a permutation"):
        load(tmp_path / "there", other)
    assert_same(other.everything(), before)
