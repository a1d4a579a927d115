"""What a measurement was taken on, and with."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path

import torch

import padst_fx
from padst_fx.cost.devices import device_of


def describe() -> dict[str, str]:
    """Processor, threads, kernels, versions and commit, for the columns of a result file."""
    device = device_of(torch.device("cpu"))
    return {
        "cpu": device.name,
        "cores": str(os.cpu_count()),
        "threads": str(device.threads),
        "vectors": device.kind,
        "kernels": device.kernels,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "commit": commit(),
    }


def commit() -> str:
    """The commit of the sources, with "+changes" if they differ from it; "" where unknown."""
    root = Path(padst_fx.__file__).resolve().parent.parent
    try:
        head = _git(root, "rev-parse", "--short=12", "HEAD")
        sources = ("padst_fx", "kernels", "passes", "benchmarks", ":!*.csv", ":!*.png")
        changed = _git(root, "status", "--porcelain", "--", *sources)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return f"{head}+changes" if changed else head


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
