import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from padst_fx.permutation import is_permutation
from padst_fx.permutation_search import retained_share, search
from padst_fx.permutation_search.assignment import greedy, parts, reassign
from padst_fx.permutation_search.climb import climb
from padst_fx.permutation_search.objective import strongest_units
from padst_fx.permutation_search.windows import exchange
from padst_fx.structures import NM, Block, Diag, parse_structure

CASES = [
    ("diag", 24, 24, 0.75),
    ("diag", 36, 24, 0.75),
    ("diag", 24, 36, 0.75),
    (Diag(width=4), 24, 24, 0.6),
    (Diag(width=4), 16, 32, 0.6),
    (Diag(run=2), 32, 16, 0.75),
    (Block(4), 16, 24, 0.6),
    (NM(2, 4), 12, 24, 0.5),
    (NM(1, 5), 12, 22, 0.8),
    (NM(2, 4, tile=4), 16, 16, 0.5),
    ("unstructured", 8, 12, 0.8),
]


def bind(structure, out, inputs, sparsity):
    return parse_structure(structure).bind(out, inputs, sparsity)


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def planted(pattern, seed=0):
    """A structured matrix with its columns shuffled: W[:, perm[j]] = S[:, j]."""
    generator = torch.Generator().manual_seed(seed)
    mask = pattern.mask(pattern.index_from_units(pattern.random_units(generator)))
    structured = random(pattern.out_features, pattern.in_features, seed=seed + 1) * mask
    weight = torch.empty_like(structured)
    weight[:, torch.randperm(pattern.in_features, generator=generator)] = structured
    return weight


def kept_by_hand(pattern, size, perm):
    """The energy of the entries that the mask of the strongest units leaves, as a share."""
    mask = pattern.mask(pattern.index_from_units(strongest_units(pattern, size, perm)))
    energy = size[:, perm].double().square()
    return float((energy * mask).sum() / energy.sum())


@pytest.mark.parametrize("case", CASES, ids=str)
@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 10_000), heavy=st.booleans())
def test_a_permutation_that_never_keeps_less_than_the_identity(case, seed, heavy):
    pattern = bind(*case)
    size = random(*case[1:3], seed=seed).abs()
    size = size.square() if heavy else size
    perm, retained = search(pattern, size)
    assert is_permutation(perm) and len(perm) == pattern.in_features
    identity = torch.arange(pattern.in_features)
    assert retained.identity == pytest.approx(kept_by_hand(pattern, size, identity), abs=1e-6)
    assert retained.permuted == pytest.approx(kept_by_hand(pattern, size, perm), abs=1e-6)
    assert retained.permuted >= retained.identity
    again, same = search(pattern, size)
    assert torch.equal(perm, again) and retained == same


@pytest.mark.parametrize(
    ("structure", "out", "inputs", "sparsity", "share"),
    [
        ("diag", 64, 64, 0.9, 1.0),
        ("diag", 256, 64, 0.9, 1.0),
        ("diag", 64, 96, 0.9, 1.0),
        ("diag", 64, 128, 0.9, 1.0),
        ("diag", 96, 256, 0.9, 1.0),
        (Diag(width=4), 64, 64, 0.8, 1.0),
        (Diag(width=4), 128, 256, 0.9, 1.0),
        (Diag(width=4), 256, 128, 0.9, 1.0),
        (Diag(run=4), 128, 128, 0.9, 1.0),
        (Block(8), 64, 128, 0.75, 1.0),
        (Block(16), 128, 128, 0.9, 1.0),
        (NM(1, 4), 256, 64, 0.75, 0.998),
        (NM(2, 4), 768, 128, 0.5, 0.998),
        (NM(1, 4, tile=16), 1024, 128, 0.75, 0.98),
        (NM(1, 10), 768, 250, 0.9, 0.98),
    ],
    ids=str,
)
def test_a_planted_permutation_is_found(structure, out, inputs, sparsity, share):
    pattern = bind(structure, out, inputs, sparsity)
    for seed in range(2):
        assert search(pattern, planted(pattern, seed).abs())[1].permuted >= share - 1e-6


@pytest.mark.parametrize("case", [("diag", 4, 4, 0.75), (Block(2), 4, 4, 0.5), ("2:4", 3, 6, 0.5)])
def test_close_to_the_best_of_all_permutations(case):
    pattern = parse_structure(case[0]).pattern(*case[1:3], 2 if case[0] == "2:4" else 1)
    for seed in range(5):
        size = random(*case[1:3], seed=seed).abs()
        every = itertools.permutations(range(pattern.in_features))
        best = max(retained_share(pattern, size, torch.tensor(perm)) for perm in every)
        assert search(pattern, size)[1].permuted >= 0.9 * best


@pytest.mark.parametrize("ragged", [20, 22])
def test_exchanged_windows_gain_exactly_what_the_assignment_says(ragged, monkeypatch):
    """The share after each assignment is the one of a brute-force recomputation, and rises."""
    pattern = NM(2, 5).bind(12, ragged, None)
    size, perm = random(12, ragged).abs(), torch.arange(ragged)
    shares = [retained_share(pattern, size, perm)]

    def checked(perm, positions, gain):
        before = retained_share(pattern, size, perm)
        moved = perm.clone()
        # Two features change places: the gains must say what that does, exactly.
        moved[positions[:2]] = perm[positions[:2].flip(0)]
        predicted = gain[0, 1] + gain[1, 0] - gain[0, 0] - gain[1, 1]
        change = retained_share(pattern, size, moved) - before
        assert change == pytest.approx(float(predicted / size.square().sum()), abs=1e-5)
        reassign(perm, positions, gain)
        shares.append(retained_share(pattern, size, perm))

    monkeypatch.setattr("padst_fx.permutation_search.windows.reassign", checked)
    exchange(pattern, size, torch.Generator().manual_seed(0), perm)
    assert len(shares) > 5
    assert all(after >= before - 1e-6 for before, after in itertools.pairwise(shares))


def test_large_assignments_go_in_parts(monkeypatch):
    monkeypatch.setattr("padst_fx.permutation_search.assignment.LARGEST", 10)
    found = list(parts(torch.arange(64), torch.Generator().manual_seed(0)))
    assert max(map(len, found)) <= 10
    assert is_permutation(torch.cat(found))
    pattern = bind("diag", 64, 64, 0.9)
    perm, retained = search(pattern, random(64, 64).abs())
    assert is_permutation(perm) and retained.permuted > 1.2 * retained.identity


def test_greedy_fills_every_slot():
    perm = greedy(random(6, 24), 4)
    assert is_permutation(perm)


def test_nothing_is_searched_where_weights_are_not_finite_or_all_zero():
    pattern = bind("diag", 16, 16, 0.75)
    broken = torch.ones(16, 16)
    broken[3, 4] = torch.nan
    assert torch.equal(search(pattern, broken)[0], torch.arange(16))
    perm, retained = search(pattern, torch.zeros(16, 16))
    assert is_permutation(perm) and retained.permuted == retained.identity == 1.0


def test_the_search_leaves_random_numbers_alone():
    torch.manual_seed(0)
    state = torch.get_rng_state()
    search(bind("2:4", 16, 16, 0.5), random(16, 16).abs())
    assert torch.equal(torch.get_rng_state(), state)


def test_a_climb_never_goes_down():
    pattern = bind("diag", 16, 16, 0.75)
    size = pattern.mask(pattern.index_from_units(torch.tensor([[0, 3, 5, 6]]))).float()
    start = torch.arange(16)

    def spoil(perm):
        perm.copy_(perm.roll(1)[torch.randperm(16, generator=torch.Generator().manual_seed(0))])

    assert torch.equal(climb(pattern, size, start, spoil), start)
