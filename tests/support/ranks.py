"""Starting workers of the distributed tests."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def torchrun(ranks: int, script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a script of this folder on so many ranks of one thread each."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc-per-node={ranks}", str(Path(__file__).parent / script)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command += map(str, arguments)
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400)
