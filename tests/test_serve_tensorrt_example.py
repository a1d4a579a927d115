"""The TensorRT example builds its engine without a GPU, and says what to do with it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
FILES = "digits.engine, digits.engine.json"


def test_without_a_gpu_an_engine_is_built_and_not_served(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "examples.serve_tensorrt", str(tmp_path), "--quick"]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    ran = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 1
    assert "accuracy" in ran.stdout
    (said,) = [line for line in ran.stderr.splitlines() if line.startswith("not served: ")]
    assert f"Copy the files {FILES} to a machine with a GPU" in said
    assert said.endswith(f"python -m examples.serve_tensorrt {tmp_path} --serve")
    assert {path.name for path in tmp_path.iterdir()} == set(FILES.split(", "))
