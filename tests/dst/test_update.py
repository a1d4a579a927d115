"""The exact update, by hand and as properties over random updates."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from padst_fx.dst.update import choose_units
from padst_fx.structures import NM, Block, Diag, Unstructured


def test_weakest_go_and_best_inactive_come():
    units = torch.tensor([[0, 2, 5]])
    drop = torch.tensor([[3.0, 1.0, 2.0]])
    candidates = torch.arange(6).view(1, 6)
    growth = torch.tensor([[9.0, 0.5, 9.0, 0.1, 0.7, 9.0]])
    choice = choose_units(units, drop, candidates, growth, 2)
    assert choice.units.tolist() == [[0, 1, 4]]
    assert (choice.dropped, choice.grown) == (2, 2)
    assert choice.drop_range == (1.0, 2.0)
    assert choice.growth_range == pytest.approx((0.5, 0.7))


def test_the_weakest_are_chosen_over_all_groups_but_each_group_keeps_its_number():
    units = torch.tensor([[0, 1], [0, 1]])
    drop = torch.tensor([[1.0, 2.0], [8.0, 9.0]])
    candidates = torch.arange(4).expand(2, 4)
    growth = torch.tensor([[0.0, 0.0, 1.0, 2.0], [0.0, 0.0, 2.0, 1.0]])
    assert choose_units(units, drop, candidates, growth, 2).units.tolist() == [[2, 3], [0, 1]]
    assert choose_units(units, drop, candidates, growth, 3).units.tolist() == [[2, 3], [1, 2]]


def test_a_group_loses_no_more_than_it_can_grow():
    units = torch.tensor([[0, 1, 2], [0, 1, 2]])
    drop = torch.tensor([[1.0, 2.0, 3.0], [7.0, 8.0, 9.0]])
    candidates = torch.arange(4).expand(2, 4)
    growth = torch.ones(2, 4)
    choice = choose_units(units, drop, candidates, growth, 3)
    assert choice.units.tolist() == [[1, 2, 3], [1, 2, 3]]
    assert choice.grown == 2


def test_negative_scores_are_no_candidates():
    units = torch.tensor([[0]])
    choice = choose_units(
        units, torch.ones(1, 1), torch.tensor([[1, 2]]), torch.tensor([[-1.0, 0.0]]), 1
    )
    assert choice.units.tolist() == [[2]]


def test_ties_are_settled_by_position():
    units = torch.tensor([[1, 3, 4]])
    choice = choose_units(
        units, torch.zeros(1, 3), torch.arange(6).view(1, 6), torch.zeros(1, 6), 1
    )
    assert choice.units.tolist() == [[0, 3, 4]]


def test_a_full_layer_stays_as_it_is():
    units = torch.arange(4).view(1, 4)
    choice = choose_units(
        units, torch.ones(1, 4), torch.arange(4).view(1, 4), torch.ones(1, 4), 2
    )
    assert choice.units.tolist() == units.tolist()
    assert (choice.grown, choice.drop_range) == (0, None)


PATTERNS = [
    Diag().bind(24, 24, 0.8),
    Diag(run=2).bind(12, 20, 0.7),
    Diag(width=4).bind(24, 40, 0.6),
    Diag(width=2, run=2).bind(24, 12, 0.5),
    Block(4).bind(16, 32, 0.6),
    NM().bind(6, 23, 0.9),
    NM(2, 4, tile=3).bind(9, 14, 0.5),
    NM(5, 6).bind(4, 18, None),
    Unstructured().bind(7, 9, 0.8),
]


def numbered(pattern, units):
    """Units by one number over all groups."""
    return units + torch.arange(pattern.groups)[:, None] * pattern.candidates


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31), fraction=st.floats(0, 1))
def test_random_updates_keep_count_structure_and_kept_values(pattern, seed, fraction):
    """50 random updates an example: 1,000 for every pattern."""
    generator = torch.Generator().manual_seed(seed)
    units = pattern.random_units(generator)
    index = pattern.index_from_units(units)
    values = torch.rand(pattern.values_shape, generator=generator) + 1
    if index.dtype == torch.bool:
        values *= index
    slot = values.clone()
    for _ in range(50):
        growth = torch.rand(pattern.groups, pattern.candidates, generator=generator)
        growth[~pattern.available()] = -1
        ids = torch.arange(pattern.candidates).expand_as(growth)
        drop = torch.rand(pattern.groups, pattern.active, generator=generator)
        before, dense_before = units, pattern.dense(values, index)
        choice = choose_units(units, drop, ids, growth, round(fraction * units.numel()))
        units = choice.units
        pattern.rearrange([values, slot], before, units)
        index = pattern.index_from_units(units)

        assert units.shape == (pattern.groups, pattern.active)
        assert (units.diff(dim=1) > 0).all()
        assert pattern.available().gather(1, units).all()
        torch.testing.assert_close(pattern.units_from_index(index), units)
        mask = pattern.mask(index)
        assert mask.sum() == pattern.nonzeros
        exchanged = int((~torch.isin(numbered(pattern, before), numbered(pattern, units))).sum())
        assert choice.dropped == choice.grown == exchanged
        dense = pattern.dense(values, index)
        grown = mask & (dense_before == 0)
        torch.testing.assert_close(dense, dense_before * mask)
        assert (dense[grown] == 0).all()
        assert torch.equal(values, slot)
        inside = index if index.dtype == torch.bool else torch.ones_like(values, dtype=torch.bool)
        refill = (values == 0) & inside
        values[refill] = 1.5
        slot[refill] = 1.5
