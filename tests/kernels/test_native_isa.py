"""The C++ kernels compiled for every other instruction set that this machine runs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from padst_fx.kernels.native import isa

TESTS = Path(__file__).parent
RUNS_ON = {"portable": ("avx2", "avx512", "amx"), "avx2": ("avx512", "amx"), "avx512": ("amx",)}


@pytest.mark.parametrize("name", RUNS_ON)
def test_kernels_of_another_instruction_set(name: str) -> None:
    if isa.widest() not in RUNS_ON[name]:
        pytest.skip(f"{name} is the widest set of this machine, or beyond it")
    files = [f"test_kernel_{kernel}.py" for kernel in ("shift", "gather_gemm")]
    files += ["test_native_rounding.py", "../ops/test_native_ops.py"]
    # What torch.compile makes of a call, what is kept between calls and what is refused are the
    # same for all of them: those objects are shared.
    chosen = ["-k", "native and not compiled_code and not packed and not refused"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *chosen, *files],
        cwd=TESTS,
        # Fresh memory is filled with a pattern, so that an element left unwritten is seen.
        env={**os.environ, isa.VARIABLE: name, "MALLOC_PERTURB_": "85"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:]
