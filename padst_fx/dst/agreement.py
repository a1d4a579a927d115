"""Several processes, one topology: scores are reduced, decisions are made once."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from padst_fx.dst.layer_state import LayerState


def world_size(group: dist.ProcessGroup | None) -> int:
    """Number of processes that train together; 1 where torch.distributed is not in use."""
    if not (dist.is_available() and dist.is_initialized()):
        return 1
    return dist.get_world_size(group)


def merge_growth(state: LayerState, group: dist.ProcessGroup | None) -> None:
    """Give every rank the growth scores of all ranks, merged in the order of ranks.

    Scores are norms of each rank's own gradient, so their sum is an estimate of the norm of the
    summed gradient, not that norm itself. A rank on which the layer was not reached adds
    nothing.
    """
    pattern = state.layer.pattern
    dtype, device = state.layer.probe.dtype, state.layer.values.device
    absent = torch.full(pattern.probe_shape, -1.0, dtype=dtype, device=device)
    mine = absent if state.growth is None else state.growth.contiguous()
    gathered = [torch.empty_like(mine) for _ in range(world_size(group))]
    dist.all_gather(gathered, mine, group=group)
    merged: Tensor | None = None
    for scores in gathered:
        if torch.equal(scores, absent):
            continue
        merged = scores if merged is None else pattern.merge_growth(merged, scores)
    state.growth = merged


def sum_over_ranks(
    mine: Tensor | None, like: Tensor, group: dist.ProcessGroup | None
) -> Tensor | None:
    """The sum of the ranks' tensors, None where no rank has one; `like` has their shape."""
    if not any_rank(mine is not None, group, like.device):
        return None
    total = torch.zeros_like(like).contiguous() if mine is None else mine.contiguous()
    dist.all_reduce(total, group=group)
    return total


def share_units(units: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """The first rank's units, on every rank."""
    shared = units.contiguous()
    dist.broadcast(shared, group=group, group_src=0)
    return shared


def any_rank(flag: bool, group: dist.ProcessGroup | None, device: torch.device) -> bool:
    """Whether the flag holds on any rank."""
    if world_size(group) == 1:
        return flag
    count = torch.tensor(int(flag), device=device)
    dist.all_reduce(count, group=group)
    return bool(count)
