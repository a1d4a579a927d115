"""What the GPU benchmarks count and check, which needs no GPU."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import padst_fx
from benchmarks import gpu
from benchmarks.gpu_check import WrongResultError, check, expected
from benchmarks.gpu_roofline import BYTES_PER_SECOND, MATRIX_OPERATIONS, floor, rows_of
from benchmarks.gpu_work import PARTS, STRUCTURES, TWO_FOUR, Work
from benchmarks.tune_tiles import problems
from padst_fx.cost import CostModel
from padst_fx.cost.devices import Device
from padst_fx.kernels.tiles.calculated import RULES
from padst_fx.kernels.tiles.candidates import candidates
from padst_fx.kernels.tiles.problem import Problem
from padst_fx.kernels.triton_ahead_of_time import recorded

ROOT = Path(__file__).parents[2]


def test_bytes_and_operations_of_a_block_layer() -> None:
    work = Work("Block(64)", "forward", 640, 640, 10)
    assert work.weights == 10 * 64 * 64
    assert work.operations() == 2 * 10 * work.weights
    assert work.bytes() == 2 * work.weights + 2 * 10 * (640 + 640) + 4 * 10
    assert work.dense_operations() == 10 * work.operations()


def test_the_floor_is_the_slower_of_moving_and_computing() -> None:
    assert floor(int(BYTES_PER_SECOND), 0, MATRIX_OPERATIONS) == (1.0, "bytes")
    assert floor(0, int(2 * MATRIX_OPERATIONS), MATRIX_OPERATIONS) == (2.0, "operations")


@pytest.mark.parametrize("structure", [*STRUCTURES, *TWO_FOUR])
def test_every_part_of_every_structure_can_be_called_and_checked(structure: str) -> None:
    for part in PARTS:
        work = Work(structure, part, 128, 192, 6, torch.float32)
        tensors = work.tensors("cpu")
        want = expected(work, tensors)
        check(work, want.clone(), want)
        with pytest.raises(WrongResultError, match="off by"):
            check(work, want * 1.01, want)
        assert recorded(work.call(work.tensors("meta")))


def test_tuning_finds_the_tiles_that_are_looked_up() -> None:
    found = {
        problem.kernel
        for structure in STRUCTURES
        for part in PARTS
        for tokens in (1, 4096)
        for work in [Work(structure, part, 256, 256, tokens)]
        for problem in _problems(work)
    }
    # The others are questions that only a CUDA device is asked.
    assert found == {name for name in RULES if name != "two_four" and not name.startswith("dense_")}


def _problems(work: Work) -> list[Problem]:
    found: list[Problem] = []
    recorded(lambda: found.extend(problems(work.call(work.tensors("meta")))))
    assert all(candidates(problem) for problem in found)
    return found


def test_a_row_names_the_tile_and_the_floor() -> None:
    (row,) = rows_of(Work("Block(64)", "forward", 4096, 4096, 16), 90)
    assert row["kernel"] == "gather_dot_kernel" and row["bound_by"] == "bytes"
    assert row["spilled"] == 0 and row["matrix_instructions"] == 1
    assert row["h100_floor_us"] < row["h100_dense_floor_us"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.parametrize("program", ["gpu", "gpu_models", "tune_tiles"])
def test_programs_that_need_a_device_say_so(program: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{program}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.strip() == (
        f"python -m benchmarks.{program} measures on a CUDA device and torch finds none here."
    )


def test_forwards_become_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device("Graphics", "sm_90", "triton", 0)
    monkeypatch.setattr(gpu, "device_of", lambda _: device)
    row = {"structure": "Diag()", "out": 64, "in": 128, "tokens": 16}
    times = {"microseconds": 2.0, "dense_microseconds": 6.0}
    rows = [{**row, **times, "part": part} for part in ("forward", "weight_grad")]
    model = CostModel(device, gpu.cost_records(rows))
    pattern = padst_fx.Diag().bind(64, 128, 0.9)
    cost = model.compare(pattern, 16, torch.bfloat16)
    assert (cost.source, cost.gain) == ("measured", pytest.approx(3.0))
