"""Two gloo ranks under DDP: one topology, and for SET and MEST the one-rank result."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import ddp_worker
import pytest
import torch


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What both ranks saw, per case."""
    folder = tmp_path_factory.mktemp("ranks")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    worker = str(Path(ddp_worker.__file__))
    subprocess.run([*command, "--nproc-per-node=2", worker, str(folder)], check=True, timeout=300)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


@pytest.mark.parametrize(("structure", "method"), ddp_worker.CASES, ids=str)
def test_ranks_agree_after_every_step(ranks, structure, method):
    first, second = (rank[f"{structure} {method}"] for rank in ranks)
    assert len(first) == ddp_worker.STEPS
    for a, b in zip(first, second, strict=True):
        assert a.keys() == b.keys()
        assert all(torch.equal(a[name], b[name]) for name in a)
    assert any(not torch.equal(first[0][n], first[-1][n]) for n in first[0] if "index" in n)


@pytest.mark.parametrize(("structure", "method"), ddp_worker.LEARNED, ids=str)
def test_learned_permutations_agree_and_equal_one_rank_with_the_whole_batch(
    ranks, structure, method
):
    first, second = (rank[f"{structure} {method} learned"] for rank in ranks)
    for a, b in zip(first, second, strict=True):
        assert all(torch.equal(a[name], b[name]) for name in a)
    assert any(not torch.equal(first[0][n], first[-1][n]) for n in first[0] if "perm" in n)
    if method == "rigl":
        return
    alone = ddp_worker.train(structure, method, rank=0, world=1, permutation="learned")
    for a, b in zip(first, alone, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("structure", "method"), [c for c in ddp_worker.CASES if c[1] in ("set", "mest")], ids=str
)
def test_two_ranks_equal_one_with_twice_the_batch(ranks, structure, method):
    together = ranks[0][f"{structure} {method}"]
    alone = ddp_worker.train(structure, method, rank=0, world=1)
    for a, b in zip(together, alone, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("structure", "method"), ddp_worker.SOFT_CASES, ids=str)
def test_ranks_have_the_same_soft_permutations_and_harden_alike(ranks, structure, method):
    first, second = (rank[f"{structure} {method} soft"] for rank in ranks)
    for step, (a, b) in enumerate(zip(first, second, strict=True), 1):
        assert a.keys() == b.keys()
        assert ("0.soft_perm" in a) == (step < ddp_worker.HARDEN_AT)
        assert all(torch.equal(a[name], b[name]) for name in a)
    assert not torch.equal(first[0]["0.soft_perm"], first[3]["0.soft_perm"])


def test_soft_permutations_of_two_ranks_are_those_of_one_with_twice_the_batch(ranks):
    alone = ddp_worker.train("diag", "set", rank=0, world=1, permutation="soft")
    for a, b in zip(ranks[0]["diag set soft"], alone, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("method", "permutation"), ddp_worker.OVERFLOWS)
def test_an_overflow_on_one_rank_skips_the_step_on_both(ranks, method, permutation):
    first, second = (rank[f"{method} {permutation} overflow"] for rank in ranks)
    for a, b in zip(first, second, strict=True):
        assert a.keys() == b.keys()
        assert all(torch.equal(a[name], b[name]) for name in a)
    counts = [state["counts"].tolist() for state in first]
    before, after = counts[ddp_worker.OVERFLOW_AT - 2], counts[ddp_worker.OVERFLOW_AT - 1]
    assert after == [before[0] / 2, before[1]]
    assert counts[-1][1] == ddp_worker.STEPS - 1
