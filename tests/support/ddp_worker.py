"""One rank of the data-parallel tests; writes what it saw to `<folder>/<rank>.pt`."""

from __future__ import annotations

import os
import sys
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import padst_fx
from padst_fx import DST, NM, Block, SoftPermutation

STEPS = 8
BATCH = 8
CASES = [
    (structure, method)
    for structure in ("diag", Block(4), NM(2, 4), "unstructured")
    for method in ("set", "rigl", "mest", "dynadiag")
    if method != "dynadiag" or structure == "diag"
]
SOFT_CASES = [("diag", "set"), (Block(4), "rigl")]
HARDEN_AT = 6
OVERFLOWS = [("set", "soft"), ("dynadiag", "identity")]
OVERFLOW_AT = 3
LEARNED = [("diag", "set"), (Block(4), "mest"), ("unstructured", "rigl")]


def make(structure, permutation: str) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 16), nn.Linear(16, 4))
    sparsity = 0.5 if isinstance(structure, NM) else 0.75
    return padst_fx.sparsify(model.double(), structure, sparsity, permutation=permutation)


def batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The whole batch of a step; ranks take equal slices."""
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(BATCH, 16, generator=generator, dtype=torch.float64)
    return x, torch.randn(BATCH, 4, generator=generator, dtype=torch.float64)


def train(
    structure, method: str, rank: int, world: int, permutation: str = "random"
) -> list[dict[str, torch.Tensor]]:
    """State dicts after every step."""
    model = make(structure, permutation)
    run = DistributedDataParallel(model) if world > 1 else model
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    soft = SoftPermutation(harden_at=HARDEN_AT, threshold=0.0) if permutation == "soft" else None
    dst = DST(model, optimizer, method, delta_t=2, t_end=1000, soft=soft)
    states = []
    for step in range(1, STEPS + 1):
        x, y = batch(step)
        mine = slice(rank * BATCH // world, (rank + 1) * BATCH // world)
        (nn.functional.mse_loss(run(x[mine]), y[mine]) + dst.penalty()).backward()
        optimizer.step()
        optimizer.zero_grad()
        dst.step()
        states.append({name: t.clone() for name, t in model.state_dict().items()})
    return states


def overflowing(method: str, permutation: str, rank: int) -> list[dict[str, torch.Tensor]]:
    """State, gradient norm and loss scale after every step, with one overflow on one rank only,
    in the gradient of a parameter that DistributedDataParallel does not know."""
    model = make("diag", permutation)
    run = DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    soft = SoftPermutation(harden_at=HARDEN_AT, threshold=0.0) if permutation == "soft" else None
    dst = DST(model, optimizer, method, delta_t=2, t_end=1000, soft=soft)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    added = model[2].soft_perm if permutation == "soft" else model[2].alpha
    states = []
    for step in range(1, STEPS + 1):
        broken = step == OVERFLOW_AT and rank == 1
        hook = added.register_hook(lambda g, factor=torch.inf if broken else 1.0: g * factor)
        x, y = batch(step)
        mine = slice(rank * BATCH // 2, (rank + 1) * BATCH // 2)
        scaler.scale(nn.functional.mse_loss(run(x[mine]), y[mine]) + dst.penalty()).backward()
        hook.remove()
        scaler.unscale_(optimizer)
        norm = nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        dst.step()
        seen = {name: t.clone() for name, t in model.state_dict().items()}
        counts = torch.tensor([scaler.get_scale(), dst.steps])
        states.append({**seen, "norm": norm.nan_to_num(), "counts": counts})
    return states


def main() -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    rank, world = dist.get_rank(), dist.get_world_size()
    seen = {f"{structure} {method}": train(structure, method, rank, world)
            for structure, method in CASES}  # fmt: skip
    for structure, method in SOFT_CASES:
        seen[f"{structure} {method} soft"] = train(structure, method, rank, world, "soft")
    for structure, method in LEARNED:
        states = train(structure, method, rank, world, "learned")
        seen[f"{structure} {method} learned"] = states
    for method, permutation in OVERFLOWS:
        seen[f"{method} {permutation} overflow"] = overflowing(method, permutation, rank)
    torch.save(seen, os.path.join(sys.argv[1], f"{rank}.pt"))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
