"""Exceptions in threads of the C++ kernels."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from padst_fx.kernels.native import build

SOURCE = Path(__file__).parent.parent / "native" / "parallel_throws.cpp"


@pytest.mark.parametrize("threads", ["-fopenmp", "-DPADST_STD_THREADS -pthread"])
@pytest.mark.parametrize("count", ["1", "3"])
def test_what_a_thread_throws_reaches_the_caller(threads: str, count: str, tmp_path: Path) -> None:
    program = tmp_path / "parallel_throws"
    command = [*build.compiler(), "-std=c++17", *threads.split(), f"-I{build.KERNELS}"]
    subprocess.run([*command, str(SOURCE), "-o", str(program)], check=True)
    environment = {**os.environ, "OMP_NUM_THREADS": count}
    assert subprocess.run([str(program)], env=environment, check=False).returncode == 0
