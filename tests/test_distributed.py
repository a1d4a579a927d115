"""Gloo ranks under DDP and FSDP2: one topology, and the one-rank result where that is promised."""

from __future__ import annotations

from pathlib import Path

import distributed_worker as worker
import pytest
import torch
from ranks import torchrun


def seen_by(ranks: int, folder: Path) -> list[dict]:
    """What every rank saw, per case."""
    process = torchrun(ranks, "distributed_worker.py", folder)
    assert process.returncode == 0, process.stderr[-3000:]
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(ranks)]


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    return seen_by(2, tmp_path_factory.mktemp("two"))


@pytest.fixture(scope="module")
def four(tmp_path_factory):
    return seen_by(4, tmp_path_factory.mktemp("four"))


def check_agreement(ranks, case):
    first, *others = (rank[str(case)] for rank in ranks)
    steps = worker.STEPS if case in worker.BASIC else worker.VARIANT_STEPS
    assert len(first["topologies"]) == steps + 1
    for other in others:
        assert other["topologies"] == first["topologies"]
        assert all(torch.equal(other["state"][name], t) for name, t in first["state"].items())
    assert all(rank[str(case)]["in place"] for rank in ranks)
    assert not first["skipped"]
    # Where all scores are equal an update may undo the one before.
    least = 2 if "ties" in case.wrapper else steps // worker.DELTA_T // 2
    assert len(set(first["topologies"])) > least


@pytest.mark.parametrize("case", worker.CASES, ids=str)
def test_two_ranks_agree_after_every_step(two, case):
    check_agreement(two, case)


@pytest.mark.parametrize("case", worker.BASIC, ids=str)
def test_four_ranks_agree_after_every_step(four, case):
    check_agreement(four, case)


@pytest.mark.parametrize("case", worker.LIKE_ONE, ids=str)
def test_two_ranks_do_what_one_rank_with_the_whole_batch_does(two, case):
    together, alone = two[0][str(case)], worker.train(case)
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
        assert warnings[0].startswith("step 1: rank 1 has other values than rank 0 in ")
