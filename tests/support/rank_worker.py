"""One rank of the distributed tests, and how they start several.

`torchrun rank_worker.py train FOLDER` trains the cases and writes `FOLDER/<rank>.pt`; two ranks
then train in `FOLDER/whole`, and in `FOLDER/cut` till one kills itself; four in `FOLDER/more`.
`torchrun rank_worker.py resume FOLDER` goes on with what was cut.
"""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import distributed_cases as cases
import resuming
import torch
import torch.distributed as dist

KILLED_AT = 10


def torchrun(ranks: int, task: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run this file on so many ranks of one thread each."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc-per-node={ranks}", __file__, task, str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400)


def train(folder: Path) -> None:
    rank, world = dist.get_rank(), dist.get_world_size()
    chosen = cases.CASES if world == 2 else cases.FOUR
    seen = {str(case): cases.train(case, rank, world) for case in chosen}
    seen["told of units"] = cases.told(seed=rank, value=1.0)
    seen["told of values"] = cases.told(seed=0, value=float(rank))
    if world == 2:
        seen |= {f"{case}, overflow": cases.overflowing(case, rank) for case in cases.OVERFLOWS}
    torch.save(seen, folder / f"{rank}.pt")
    if world == 2:
        resuming.run(folder / "whole")
        (folder / f"refused by {rank}").write_text(resuming.refused(folder / "whole"))
        resuming.run(folder / "cut", KILLED_AT)
    else:
        resuming.run(folder / "more")


def main() -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    task, folder = sys.argv[1], Path(sys.argv[2])
    if task == "train":
        train(folder)
    else:
        resuming.run(folder)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
