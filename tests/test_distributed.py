"""Gloo ranks under DDP and FSDP2: one topology, the one-rank result where that is promised, and
trainings that are killed or go on with another number of ranks."""

from __future__ import annotations

import shutil
import time

import distributed_cases as cases
import pytest
import resuming
import torch
from distributed_cases import Training
from rank_worker import KILLED_AT, torchrun
from same import assert_same

import padst_fx

LONGEST_STOP = 30  # seconds


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where two ranks have trained every case, and one of them was killed in the end."""
    folder = tmp_path_factory.mktemp("two")
    for name in ("whole", "cut"):
        (folder / name).mkdir()
    process = torchrun(2, "train", folder)
    assert (folder / "cut" / "killed").is_file(), process.stderr[-3000:]
    assert process.returncode != 0
    assert "SIGKILL" in process.stderr
    assert time.time() - (folder / "cut" / "killed").stat().st_mtime < LONGEST_STOP
    return folder


@pytest.fixture(scope="module")
def two(folder):
    """What each of two ranks saw, per case."""
    return [kept(folder, str(rank)) for rank in range(2)]


@pytest.fixture(scope="module")
def more(folder, tmp_path_factory):
    """Where four ranks have trained, and gone on with what two had saved."""
    more = tmp_path_factory.mktemp("four")
    for step in range(resuming.EVERY, KILLED_AT, resuming.EVERY):
        for case in resuming.CASES:
            path = resuming.checkpoint(folder / "whole", case, step)
            shutil.copytree(path, more / "more" / path.name)
    process = torchrun(4, "train", more)
    assert process.returncode == 0, process.stderr[-3000:]
    return more


def kept(folder, name):
    return torch.load(folder / f"{name}.pt", weights_only=True)


def check_agreement(ranks, case):
    first, *others = (rank[str(case)] for rank in ranks)
    steps = cases.steps(case)
    assert len(first["topologies"]) == steps
    for other in others:
        assert other["topologies"] == first["topologies"]
        assert other["soft"] == first["soft"]
        assert all(torch.equal(other["state"][name], t) for name, t in first["state"].items())
    assert all(rank[str(case)]["in place"] for rank in ranks)
    assert not first["skipped"]
    # Where all scores are equal an update may undo the one before.
    least = 2 if "ties" in case.wrapper else steps // cases.DELTA_T // 2
    assert len(set(first["topologies"])) >= least
    assert first["moved"] == ("learned" in case.permutation and "ties" not in case.wrapper)


@pytest.mark.parametrize("case", cases.CASES, ids=str)
def test_two_ranks_agree_after_every_step(two, case):
    check_agreement(two, case)


@pytest.mark.parametrize("case", cases.OTHERWISE, ids=str)
def test_the_second_rank_would_have_decided_otherwise(two, case):
    """So that it agrees only because it was sent what the first one decided."""
    expected = {"manager.choose_units"}
    if case.permutation == "learned":
        expected |= {"learned_permutation.choose_features"}
    if case.permutation == "soft":
        expected |= {"hardening.nearest_permutation", "hardening._per_line"}
    first, second = (rank[str(case)]["otherwise"] for rank in two)
    assert (first, set(second)) == ([], expected)


@pytest.mark.parametrize("case", cases.FOUR, ids=str)
def test_four_ranks_agree_after_every_step(more, case):
    check_agreement([kept(more, str(rank)) for rank in range(4)], case)


@pytest.mark.parametrize("case", cases.LIKE_ONE, ids=str)
def test_two_ranks_do_what_one_rank_with_the_whole_batch_does(two, case):
    together, alone = two[0][str(case)], cases.train(case)
    assert together["topologies"] == alone["topologies"]
    torch.testing.assert_close(together["state"], alone["state"], rtol=1e-9, atol=1e-11)


def test_ranks_with_other_units_are_all_told(two):
    for rank in two:
        error, _ = rank["told of units"]
        assert error.startswith("step 1: rank 1 has other units or another permutation than rank 0")


def test_ranks_with_other_values_are_warned(two):
    for rank in two:
        error, warnings = rank["told of values"]
        assert not error
        assert warnings[0].startswith("step 1: rank 1 has other values than rank 0 in 0; ")


def test_what_was_cut_goes_on_bit_for_bit(folder):
    cut, whole = folder / "cut", folder / "whole"
    assert resuming.newest(cut) == KILLED_AT // resuming.EVERY * resuming.EVERY
    process = torchrun(2, "resume", cut)
    assert process.returncode == 0, process.stderr[-3000:]
    for rank in range(2):
        assert_same(kept(cut, f"end on {rank} of 2"), kept(whole, f"end on {rank} of 2"))


def test_every_rank_refuses_a_checkpoint_that_is_damaged_anywhere(folder):
    first, second = ((folder / f"refused by {rank}").read_text() for rank in range(2))
    assert first == second
    assert first.endswith("__1_0.distcp does not match its checksum")


def test_four_ranks_go_on_from_two(folder, more):
    saved = kept(folder / "whole", "step 8 on 0 of 2")
    for rank in range(4):
        assert_same(kept(more / "more", f"loaded by {rank} of 4"), saved)
        end = kept(more / "more", f"end on {rank} of 4")
        assert_same(end, kept(more / "more", "end on 0 of 4"))


@pytest.mark.parametrize("case", resuming.CASES, ids=str)
def test_one_process_goes_on_from_four(more, case):
    training = Training(case)
    path = resuming.checkpoint(more / "more", case, 12)
    padst_fx.load_sharded(path, training.model, training.optimizer, training.dst)
    assert_same(training.everything(), kept(more / "more", "step 12 on 0 of 4")[str(case)])


@pytest.mark.parametrize("case", cases.OVERFLOWS, ids=str)
def test_an_overflow_on_one_rank_skips_the_step_on_both(two, case):
    first, second = (rank[f"{case}, overflow"] for rank in two)
    assert_same(second, first)
    scales, counts = first["scales"], first["counts"]
    assert scales[cases.OVERFLOW_AT - 1] == scales[cases.OVERFLOW_AT - 2] / 2
    assert counts[cases.OVERFLOW_AT - 1] == counts[cases.OVERFLOW_AT - 2]
    assert counts[-1] == cases.FEWER_STEPS - 1
