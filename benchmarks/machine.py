"""What a measurement was taken on."""

from __future__ import annotations

import platform
from pathlib import Path

import torch

RESULTS = Path(__file__).parent / "results"


def describe() -> dict[str, str]:
    """Processor, threads and torch version, for the columns of a result file."""
    return {
        "cpu": _cpu(),
        "threads": str(torch.get_num_threads()),
        "vectors": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
    }


def _cpu() -> str:
    """The processor's name where the system tells it, else the architecture's."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()
