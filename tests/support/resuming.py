"""Trainings that save sharded checkpoints, are killed, and go on from the newest one."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import torch
import torch.distributed as dist
from distributed_cases import Case, Training

import padst_fx
from padst_fx.folder_seal import is_sealed

STEPS = 14
EVERY = 4
CASES = [
    Case("fsdp", "diag", "dynadiag", "learned"),
    Case("ddp", "block", "rigl", "learned"),
    Case("fsdp, kept unsharded", "nm", "mest", "soft"),
]


def checkpoint(folder: Path, case: Case, step: int) -> Path:
    return folder / f"{CASES.index(case)} step {step}"


def newest(folder: Path) -> int:
    """The last step of which all cases have a complete checkpoint; 0 without any."""
    done = [
        step
        for step in range(EVERY, STEPS + 1, EVERY)
        if all(is_sealed(checkpoint(folder, case, step)) for case in CASES)
    ]
    return max(done, default=0)


def run(folder: Path, killed_at: int | None = None) -> None:
    """Train to the end, from the newest checkpoint in the folder if there is one.

    At the step `killed_at` the last rank kills itself.
    """
    rank, world = dist.get_rank(), dist.get_world_size()
    trainings = [Training(case, rank, world) for case in CASES]
    start = newest(folder)
    if start:
        for training in trainings:
            path = checkpoint(folder, training.case, start)
            extra = padst_fx.load_sharded(path, training.run, training.optimizer, training.dst)
            assert extra == {"step": start, "rank": 0}
        keep(folder / f"loaded by {rank} of {world}.pt", trainings)
    for step in range(start + 1, STEPS + 1):
        for training in trainings:
            training.backward(step)
            if step == killed_at and rank == world - 1:
                (folder / "killed").touch()
                os.kill(os.getpid(), signal.SIGKILL)
            training.step()
            if step % EVERY == 0:
                path = checkpoint(folder, training.case, step)
                extra = {"step": step, "rank": rank}
                padst_fx.save_sharded(
                    path, training.run, training.optimizer, training.dst, extra=extra
                )
        if step % EVERY == 0:
            keep(folder / f"step {step} on {rank} of {world}.pt", trainings)
    keep(folder / f"end on {rank} of {world}.pt", trainings)


def refused(folder: Path) -> str:
    """What this rank says of a checkpoint of which one byte, of the other rank's part, is wrong."""
    broken = folder / "broken"
    if dist.get_rank() == 0:
        shutil.copytree(checkpoint(folder, CASES[0], EVERY), broken)
        damaged = max(broken.glob("*.distcp"))
        content = damaged.read_bytes()
        damaged.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    dist.barrier()
    training = Training(CASES[0], dist.get_rank(), dist.get_world_size())
    try:
        padst_fx.load_sharded(broken, training.run, training.optimizer, training.dst)
    except padst_fx.CheckpointError as error:
        return str(error)
    return ""


def keep(path: Path, trainings: list[Training]) -> None:
    torch.save({str(t.case): t.everything() for t in trainings}, path)
