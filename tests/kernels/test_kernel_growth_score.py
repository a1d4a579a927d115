"""Growth scores on the CPU: norms over the dense float64 gradient."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_checks import (
    GATHERS,
    SETTINGS,
    Gather,
    Setting,
    check_block_score,
    check_diag_score,
    check_nm_score,
    check_weight_score,
)

from padst_fx.kernels.growth_score import cpu, reference

NO_PERM = torch.empty(0, dtype=torch.int32)
NM = {name: shape for name, shape in GATHERS.items() if shape.window}
DIAGONALS = [
    (53, 37, 1, 1),
    (37, 53, 1, 1),
    (24, 24, 1, 8),
    (40, 20, 4, 2),
    (20, 40, 4, 5),
    (9, 6, 3, 1),
]


@pytest.mark.parametrize("module", [reference, cpu])
@pytest.mark.parametrize("shape", DIAGONALS, ids=str)
@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_diagonals(module: ModuleType, shape: tuple[int, ...], setting: Setting) -> None:
    check_diag_score(module, *shape, setting)


@pytest.mark.parametrize("module", [reference, cpu])
@pytest.mark.parametrize("shape", [(20, 12, 4), (6, 9, 3), (5, 7, 1), (32, 16, 16)], ids=str)
@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_blocks(module: ModuleType, shape: tuple[int, int, int], setting: Setting) -> None:
    check_block_score(module, *shape, setting)


@pytest.mark.parametrize("module", [reference, cpu])
@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_weights(module: ModuleType, setting: Setting) -> None:
    check_weight_score(module, 7, 11, setting)


@pytest.mark.parametrize("module", [reference, cpu])
@pytest.mark.parametrize("shape", NM)
@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_n_of_m(module: ModuleType, shape: str, setting: Setting) -> None:
    check_nm_score(module, NM[shape], setting)


@settings(max_examples=40, deadline=None)
@given(data=st.data(), tokens=st.integers(1, 5), seed=st.integers(0, 1000))
def test_any_n_of_m(data: st.DataObject, tokens: int, seed: int) -> None:
    m = data.draw(st.integers(2, 9))
    last = data.draw(st.integers(1, m))
    n = data.draw(st.integers(1, min(last, m - 1)))
    features = m * data.draw(st.integers(0, 3)) + last
    tile = data.draw(st.integers(1, 4))
    shape = Gather(data.draw(st.integers(1, 4)), n, 1, tile, features, m, torch.uint8)
    for module in (reference, cpu):
        check_nm_score(module, shape, Setting(tokens=tokens, seed=seed))


@pytest.mark.parametrize("workspace", [1, 50])
def test_chunks_of_rows_change_nothing(workspace: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "WORKSPACE", workspace)
    check_diag_score(cpu, 20, 40, 4, 1, Setting())
    check_block_score(cpu, 20, 12, 4, Setting())
    check_nm_score(cpu, NM["nm-3:6-tile-3"], Setting())


@pytest.mark.parametrize("module", [reference, cpu])
def test_ties_go_to_the_smaller_slot(module: ModuleType) -> None:
    x, grad = torch.tensor([[2.0, 2.0, 5.0, 2.0, 2.0, 1.0]]), torch.ones(1, 1)
    index = torch.tensor([[0, 2]], dtype=torch.uint8)
    scores, slots = module.nm_growth_score(grad, x, index, NO_PERM, 2, 6)
    assert scores.flatten().tolist() == [2.0, 2.0]
    assert slots.flatten().tolist() == [1.0, 3.0]


@pytest.mark.parametrize("module", [reference, cpu])
def test_not_a_number_is_chosen_and_shows(module: ModuleType) -> None:
    x, grad = torch.tensor([[1.0, 3.0, float("nan"), 4.0]]), torch.ones(1, 1)
    index = torch.tensor([[0]], dtype=torch.uint8)
    scores, slots = module.nm_growth_score(grad, x, index, NO_PERM, 1, 4)
    assert scores.flatten().tolist() == [float("inf")]
    assert slots.flatten().tolist() == [2.0]


@pytest.mark.parametrize("module", [reference, cpu])
def test_diagonals_by_hand(module: ModuleType) -> None:
    # The gradient is [[1, 2], [3, 6], [4, 8]]: diagonals (0,0)(1,1); (1,0)(2,1); (2,0)(0,1).
    grad, x = torch.tensor([[1.0, 3.0, 4.0]]), torch.tensor([[1.0, 2.0]])
    got = module.diag_growth_score(grad, x, NO_PERM, 1, 1).square()
    torch.testing.assert_close(got, torch.tensor([37.0, 73.0, 20.0]))
