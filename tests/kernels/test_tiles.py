"""Which tile a launch gets: calculated, measured, or forced by a measurement."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from padst_fx.kernels.integers import power_of_two
from padst_fx.kernels.tiles import table
from padst_fx.kernels.tiles.calculated import RULES, SIZES, calculated
from padst_fx.kernels.tiles.candidates import MOST_SUMS_PER_THREAD, candidates, sums_per_thread
from padst_fx.kernels.tiles.problem import TOKEN_CLASSES, Problem

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
PROBLEM = Problem("gather_dot", torch.bfloat16, 16, (64, 64, 64, 384))
# Answered by yes or no instead of a tile.
QUESTIONS = {"two_four", "dense_forward", "dense_input_grad", "dense_weight_grad"}
DOT_DTYPES = (torch.bfloat16, torch.float16, torch.float32)


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    kernel = draw(st.sampled_from([name for name in RULES if name not in QUESTIONS]))
    dtypes = DOT_DTYPES if "dot" in kernel or "windows" in kernel else (*DOT_DTYPES, torch.float64)
    most = 64 if kernel == "outer_windows" else 20_000
    sizes = tuple(draw(st.integers(1, most)) for _ in SIZES[kernel])
    return Problem(kernel, draw(st.sampled_from(dtypes)), draw(st.integers(0, 10_000)), sizes)


@settings(max_examples=200, deadline=None)
@given(problems())
def test_calculated_tiles_suit_the_kernel(problem: Problem) -> None:
    tiles = calculated(problem)
    assert all(size == power_of_two(size) for k, size in tiles.items() if k != "num_stages")
    assert sums_per_thread(problem.kernel, tiles) <= MOST_SUMS_PER_THREAD
    if "num_stages" in tiles:
        assert min(tiles.get(name, 16) for name in ("BLOCK_M", "BLOCK_V", "BLOCK_C")) >= 16


@settings(max_examples=50, deadline=None)
@given(problems())
def test_candidates_start_with_the_calculated_tile_and_are_distinct(problem: Problem) -> None:
    found = candidates(problem)
    assert found[0] == calculated(problem)
    assert len({tuple(tiles.items()) for tiles in found}) == len(found)
    assert all(tiles.keys() == found[0].keys() for tiles in found)


def test_a_key_rounds_sizes_up_to_powers_of_two() -> None:
    assert PROBLEM.key() == "gather_dot/half/16/64x64x64x512"
    assert PROBLEM._replace(dtype=torch.float16, tokens=9).key() == PROBLEM.key()
    assert PROBLEM._replace(tokens=17).key() != PROBLEM.key()
    most = PROBLEM._replace(tokens=10**6)
    assert most.token_class == TOKEN_CLASSES[-1]


def test_a_second_look_up_is_remembered() -> None:
    assert table.lookup(CPU, PROBLEM) is table.lookup(CPU, Problem(*PROBLEM))


def test_a_forced_tile_is_used_for_its_kernel_alone() -> None:
    other = Problem("gather_sum", torch.float32, 16, (64, 64))
    with table.forced("gather_dot", {"BLOCK_M": 32}):
        assert table.lookup(CPU, PROBLEM) == {"BLOCK_M": 32}
        assert table.lookup(CPU, other) == calculated(other)
    assert table.lookup(CPU, PROBLEM) == calculated(PROBLEM)


def test_measured_tiles_go_before_calculated_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table, "MEASURED", tmp_path / "measured")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 80GB HBM3")
    table.forget()
    assert table.lookup(CUDA, PROBLEM) == calculated(PROBLEM)
    tiles = {**calculated(PROBLEM), "num_warps": 2}
    path = table.write("NVIDIA H100 80GB HBM3", {PROBLEM.key(): tiles}, {"triton": "3.7.1"})
    assert path.name == "nvidia_h100_80gb_hbm3.json"
    assert table.lookup(CUDA, PROBLEM) == tiles
    assert table.lookup(CPU, PROBLEM) == calculated(PROBLEM)
    unmeasured = PROBLEM._replace(tokens=4096)
    assert table.lookup(CUDA, unmeasured) == calculated(unmeasured)
    table.forget()


def test_shipped_tables_hold_tiles_that_kernels_take() -> None:
    for path in table.MEASURED.glob("*.json"):
        for key, tiles in table.read(path.stem).items():
            kernel, _, tokens, sizes = key.split("/")
            problem = Problem(
                kernel, torch.bfloat16, int(tokens), tuple(int(s) for s in sizes.split("x"))
            )
            assert tiles.keys() == calculated(problem).keys()


@pytest.mark.parametrize("kernel", sorted(QUESTIONS))
def test_a_question_has_two_candidates(kernel: str) -> None:
    problem = Problem(kernel, torch.bfloat16, 4096, (4096,) * len(SIZES[kernel]))
    answer, other = candidates(problem)
    assert answer == calculated(problem)
    assert answer.keys() == other.keys() and {*answer.values(), *other.values()} == {0, 1}


@pytest.mark.parametrize(
    ("tokens", "width", "dtype", "dense"),
    [
        (4096, 1, torch.bfloat16, 1),
        (4096, 16, torch.float16, 1),
        (4096, 64, torch.bfloat16, 0),
        (8, 1, torch.bfloat16, 0),
        (4096, 1, torch.float32, 0),
        (0, 1, torch.bfloat16, 0),
    ],
)
def test_narrow_structures_go_through_a_dense_matrix_with_many_tokens(
    tokens: int, width: int, dtype: torch.dtype, dense: int
) -> None:
    problem = Problem("dense_forward", dtype, tokens, (4096, 4096, 4096 * 410, width))
    assert calculated(problem) == {"DENSE": dense}
