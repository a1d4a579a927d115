"""Several processes, one topology: scores are reduced, decisions are made once."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from padst_fx.dst.layer_state import LayerState
from padst_fx.layers.linear import SparseLinear
from padst_fx.sharding import is_sharded

log = logging.getLogger(__name__)

# Odd constants of splitmix64's mixing function, as int64.
GOLDEN, FIRST, SECOND = -0x61C8864680B583EB, -0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15


def world_size(group: dist.ProcessGroup | None) -> int:
    """Number of processes that train together; 1 where torch.distributed is not in use."""
    if not (dist.is_available() and dist.is_initialized()):
        return 1
    return dist.get_world_size(group)


def merge_growth(states: Sequence[LayerState], group: dist.ProcessGroup | None) -> None:
    """Give every rank the growth scores of all ranks, one layer at a time.

    Norms of each rank's own gradient are summed, which estimates the norm of the summed gradient
    and is not that norm itself; dense gradients are summed as gradients are. N:M's best candidates
    are merged in the order of ranks. A rank on which a layer was not reached adds nothing; scores
    that no rank has stay None.
    """
    reached = any_rank_each([s.growth is not None for s in states], group, _device(states))
    for state, somewhere in zip(states, reached, strict=True):
        if not somewhere:
            continue
        if state.layer.scorer.adds_up:
            state.growth = sum_over_ranks(state.growth, state.layer.probe, group)
        else:
            state.growth = _merged_in_order(state, group)


def _device(states: Sequence[LayerState]) -> torch.device:
    return states[0].layer.values.device


def _merged_in_order(state: LayerState, group: dist.ProcessGroup | None) -> Tensor | None:
    """All ranks' scores, merged by the pattern's rule; a rank without any is passed over."""
    layer = state.layer
    absent = torch.full_like(layer.probe, -1.0, memory_format=torch.contiguous_format)
    mine = absent if state.growth is None else state.growth.contiguous()
    gathered = [torch.empty_like(mine) for _ in range(world_size(group))]
    dist.all_gather(gathered, mine, group=group)
    merged: Tensor | None = None
    for scores in gathered:
        if torch.equal(scores, absent):
            continue
        merged = scores if merged is None else layer.scorer.merge_growth(merged, scores)
    return merged


def sum_over_ranks(mine: Tensor | None, like: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """The sum of the tensors of those ranks that have one; `like` has their shape."""
    total = torch.zeros(like.shape, dtype=like.dtype, device=like.device)
    if mine is not None:
        total = mine.contiguous()
    dist.all_reduce(total, group=group)
    return total


def share_units(units: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """The first rank's units, on every rank."""
    shared = units.contiguous()
    dist.broadcast(shared, group=group, group_src=0)
    return shared


def any_rank(flag: bool, group: dist.ProcessGroup | None, device: torch.device) -> bool:
    """Whether the flag holds on any rank."""
    return any_rank_each([flag], group, device)[0]


def any_rank_each(
    flags: Sequence[bool], group: dist.ProcessGroup | None, device: torch.device
) -> list[bool]:
    """For each flag whether it holds on any rank, in one reduction."""
    if world_size(group) == 1 or not flags:
        return list(flags)
    counts = torch.tensor([int(flag) for flag in flags], device=device)
    dist.all_reduce(counts, group=group)
    return [count > 0 for count in counts.tolist()]


def check_alike(
    layers: Sequence[tuple[str, SparseLinear]], step: int, group: dist.ProcessGroup | None
) -> None:
    """Raise `RuntimeError`, on every rank, unless all ranks have the first one's units and
    permutations and are at the same step; warn where their values differ."""
    if world_size(group) == 1:
        return
    device = layers[0][1].values.device
    topologies = [topology_digest(layer) for _, layer in layers]
    values = [_values_digest(layer) for _, layer in layers]
    mine = torch.stack([torch.tensor(step, device=device), *topologies, *values])
    gathered = [torch.empty_like(mine) for _ in range(world_size(group))]
    dist.all_gather(gathered, mine, group=group)
    first = gathered[0].tolist()
    for rank, other in enumerate(gathered):
        if (found := other.tolist()) != first:
            _compare([name or "the layer" for name, _ in layers], rank, found, first)


def _compare(names: list[str], rank: int, found: list[int], first: list[int]) -> None:
    """Say in what a rank differs from the first; both lists are as `check_alike` sends them."""
    if found[0] != first[0]:
        raise RuntimeError(f"rank {rank} is at step {found[0]}, rank 0 at step {first[0]}")
    differing = [
        name
        for name, a, b in zip([*names, *names], found[1:], first[1:], strict=True)
        if a != b
    ]
    listed = f"{', '.join(differing[:3])}" + (" and more" if len(differing) > 3 else "")
    if found[1 : len(names) + 1] != first[1 : len(names) + 1]:
        raise RuntimeError(
            f"step {first[0]}: rank {rank} has other units or another permutation than rank 0 in "
            f"{listed}. Start all ranks from one model: seed them alike before sparsify, load one "
            "checkpoint, or wrap the model in DistributedDataParallel, which sends the first "
            "rank's to all"
        )
    log.warning(
        "step %d: rank %d has other values than rank 0 in %s; is every gradient reduced? The "
        "first rank's decide what is dropped",
        first[0],
        rank,
        listed,
    )


def topology_digest(layer: SparseLinear) -> Tensor:
    """A hash of a layer's units and permutation: an int64 scalar on the layer's device."""
    return _digest(layer.index) * GOLDEN + _digest(layer.perm)


def _values_digest(layer: SparseLinear) -> Tensor:
    """A hash of the values; of sharded ones, which are nowhere twice, the same for all."""
    if is_sharded(layer.values):
        return torch.zeros((), dtype=torch.int64, device=layer.values.device)
    return _digest(layer.values)


def _digest(tensor: Tensor) -> Tensor:
    """The sum of all 8-byte words, each mixed with its place (splitmix64)."""
    octets = tensor.detach().contiguous().view(-1).view(torch.uint8)
    words = nn.functional.pad(octets, (0, -len(octets) % 8)).view(torch.int64)
    mixed = words + GOLDEN * torch.arange(1, len(words) + 1, device=words.device)
    mixed = (mixed ^ (mixed >> 30)) * FIRST
    mixed = (mixed ^ (mixed >> 27)) * SECOND
    return (mixed ^ (mixed >> 31)).sum()
