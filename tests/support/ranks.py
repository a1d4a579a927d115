"""Two gloo ranks forked off a test, so that what it has imported need not be imported again."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import torch
import torch.multiprocessing as multiprocessing


def on_two_ranks(work: Callable[[int, Path], None], folder: Path) -> None:
    """Run `work(rank, folder)` in two processes whose environment is that of torchrun's ranks.

    What one raises is raised here.
    """
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    multiprocessing.start_processes(
        _rank, args=(work, folder, port), nprocs=2, start_method="fork"
    )


def _rank(rank: int, work: Callable[[int, Path], None], folder: Path, port: int) -> None:
    # OpenMP's threads do not survive a fork.
    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "localhost", "MASTER_PORT": str(port),
    }
    work(rank, folder)
