"""Runs the Triton equality suites, each in its own process.

Triton decides when it is imported whether kernels are interpreted, so a process that other tests
share cannot be used.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SUITES = sorted((Path(__file__).parent / "interpreted").glob("*_equality.py"))


def run_suite(suite: Path, interpret: bool) -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "1" if interpret else "0"}
    options = ["-p", "no:cacheprovider", "--tb=short", "-x"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", str(suite), *options],
        env=environment,
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout[-6000:]}\n{done.stderr[-2000:]}"


def test_there_is_a_suite_per_kernel_and_one_for_layouts() -> None:
    names = {suite.stem.removesuffix("_equality") for suite in SUITES}
    assert names == {"shift", "gather_gemm", "growth_score", "layout"}


@pytest.mark.parametrize("suite", SUITES, ids=lambda suite: suite.stem)
def test_interpreted(suite: Path) -> None:
    run_suite(suite, interpret=True)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("suite", SUITES, ids=lambda suite: suite.stem)
def test_on_the_device(suite: Path) -> None:
    run_suite(suite, interpret=False)
