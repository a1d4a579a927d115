"""Structures: hand-computed masks, exact counts, growth candidates, configurations."""

from __future__ import annotations

import pytest
import torch

from padst_fx.structures import (
    NM,
    Block,
    Diag,
    StructureError,
    Unstructured,
    parse_structure,
    structure_from_config,
)


def mask(pattern, units) -> list[list[int]]:
    return pattern.mask(pattern.index_from_units(torch.tensor(units))).int().tolist()


def test_square_diagonals_wrap():
    assert mask(Diag().bind(3, 3, 0.5), [[0, 1]]) == [[1, 0, 1], [1, 1, 0], [0, 1, 1]]


def test_tall_diagonals_run_along_the_columns():
    assert mask(Diag().bind(4, 2, 0.75), [[3]]) == [[0, 1], [0, 0], [0, 0], [1, 0]]


def test_wide_diagonals_run_along_the_rows():
    assert mask(Diag().bind(2, 4, 0.75), [[3]]) == [[0, 0, 0, 1], [1, 0, 0, 0]]


def test_wide_block_diagonal():
    assert mask(Diag(width=2).bind(2, 6, 0.5), [[2]]) == [[0, 0, 0, 0, 1, 1]] * 2


def test_a_run_is_one_unit():
    pattern = Diag(run=2).bind(1, 6, 0.6)
    assert (pattern.active, pattern.candidates) == (1, 3)
    assert mask(pattern, [[1]]) == [[0, 0, 1, 1, 0, 0]]


def test_blocks():
    assert mask(Block(2).bind(4, 4, 0.5), [[0], [1]]) == [
        [1, 1, 0, 0],
        [1, 1, 0, 0],
        [0, 0, 1, 1],
        [0, 0, 1, 1],
    ]


def test_nm_with_shared_rows_and_a_short_last_window():
    pattern = NM(1, 3, tile=2).bind(2, 5, None)
    assert mask(pattern, [[2], [1]]) == [[0, 0, 1, 0, 1]] * 2
    assert pattern.available().int().tolist() == [[1, 1, 1], [1, 1, 0]]


@pytest.mark.parametrize("shape", [(24, 24), (24, 60), (60, 24), (37, 53), (53, 37)])
def test_all_diagonals_tile_the_matrix_exactly_once(shape):
    pattern = Diag().bind(*shape, 0.0)
    index = pattern.index_from_units(pattern.random_units())
    ones = torch.ones(pattern.values_shape)
    row, column = pattern.coordinates(index)
    counts = torch.zeros(shape).index_put((row, column), ones, accumulate=True)
    assert (counts == 1).all()


@pytest.mark.parametrize(
    ("structure", "shape", "sparsity", "active"),
    [
        (Diag(), (768, 768), 0.9, 77),
        (Diag(), (3072, 768), 0.9, 307),
        (Diag(), (10, 10), 0.999, 1),
        (Diag(width=16), (768, 3072), 0.9, 19),
        (Diag(run=8), (768, 768), 0.9, 10),
        (Block(32), (768, 768), 0.9, 2),
        (NM(), (768, 768), 0.9, 1),
        (NM(), (768, 768), 0.75, 1),
        (NM(2, 4), (768, 768), None, 2),
        (Unstructured(), (10, 10), 0.93, 7),
    ],
)
def test_active_counts(structure, shape, sparsity, active):
    assert structure.bind(*shape, sparsity).active == active


@pytest.mark.parametrize(
    ("name", "structure"),
    [
        ("diag", Diag()),
        ("block", Block()),
        ("nm", NM()),
        ("2:4", NM(2, 4)),
        ("1:10", NM(1, 10)),
        ("unstructured", Unstructured()),
        (Diag(width=8), Diag(width=8)),
    ],
)
def test_names(name, structure):
    assert parse_structure(name) == structure


@pytest.mark.parametrize("name", ["diagonal", "2:4:8", "", None, 3, Diag])
def test_unknown_names_list_the_valid_ones(name):
    with pytest.raises(StructureError, match="valid: 'diag', 'block', 'nm', 'unstructured'"):
        parse_structure(name)


@pytest.mark.parametrize(
    "structure", [Diag(), Diag(8, 4), Block(32), NM(), NM(2, 4, 16), Unstructured()]
)
def test_configurations_round_trip(structure):
    assert structure_from_config(structure.config()) == structure


@pytest.mark.parametrize("config", [{}, {"name": "x"}, {"name": "diag", "wide": 3}])
def test_bad_configurations_are_refused(config):
    with pytest.raises(StructureError):
        structure_from_config(config)


def test_nm_growth_of_two_passes_adds_the_scores_of_common_slots():
    """Slots are raised by m = 6."""
    pattern = NM(2, 6).bind(1, 6, None)
    first = torch.tensor([[5.0, 3.0], [7.0, 10.0]]).view(2, 1, 1, 2)
    second = torch.tensor([[4.0, 2.5], [8.0, 10.0]]).view(2, 1, 1, 2)
    score, slot = pattern.growth_candidates(pattern.merge_growth(first, second))
    assert score.tolist() == [[5.5, 5.0]]
    assert slot.tolist() == [[4, 1]]


def test_nm_growth_ignores_missing_candidates():
    pattern = NM(2, 4).bind(1, 7, None)
    empty = torch.tensor([[-1.0, -1.0], [4.0, 4.0]]).view(2, 1, 1, 2)
    found = torch.tensor([[3.0, -1.0], [4.0, 4.0]]).view(2, 1, 1, 2)
    score, slot = pattern.merge_growth(empty, found)[:, 0, 0]
    assert score.tolist() == [3.0, -1.0]
    assert slot[0] == 4
