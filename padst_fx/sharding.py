"""Parameters of which every rank holds a part: FSDP2's, and how an update works on them whole."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


def is_sharded(tensor: object) -> bool:
    """Whether it is a `DTensor`. Where nobody imported DTensor there is none."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def whole(tensor: Any) -> Tensor:
    """The whole of a sharded tensor, gathered (every rank must ask); any other tensor itself."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor


@contextmanager
def whole_tensors(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """The whole of each tensor, to be changed in place; each rank then keeps its own part.

    Tensors that are not sharded are given as they are. The storage of the parts stays. Every rank
    must make the same changes.
    """
    gathered = [whole(tensor) for tensor in tensors]
    yield gathered
    for tensor, full in zip(tensors, gathered, strict=True):
        if is_sharded(tensor):
            _keep_own_part(tensor, full)


def _keep_own_part(sharded: Any, full: Tensor) -> None:
    from torch.distributed.tensor import distribute_tensor

    # Without a source rank nothing is sent: all ranks have the whole already.
    parts = distribute_tensor(full, sharded.device_mesh, sharded.placements, src_data_rank=None)
    sharded.to_local().copy_(parts.to_local())


def sharded_modules(model: nn.Module) -> list[Any]:
    """The modules that `fully_shard` was applied to."""
    fsdp = sys.modules.get("torch.distributed.fsdp")
    if fsdp is None:
        return []
    return [module for module in model.modules() if isinstance(module, fsdp.FSDPModule)]


def check_sharding(model: nn.Module, layers: Iterable[tuple[str, nn.Module]]) -> None:
    """Raise `ValueError` for sparse layers split in a way that updates cannot work with."""
    below = {
        id(module) for owner in sharded_modules(model) for module in owner.modules()
    }
    for name, layer in layers:
        for parameter in ("alpha", "soft_perm"):
            if is_sharded(getattr(layer, parameter)):
                raise ValueError(
                    f"{name}.{parameter} is sharded, but DST keeps it whole on every rank: call "
                    "fully_shard(..., ignored_params=padst_fx.replicated_parameters(model))"
                )
        values: Any = layer.values
        if not is_sharded(values):
            continue
        split = [placement for placement in values.placements if placement.is_shard()]
        if id(layer) not in below or len(split) > 1:
            mesh = tuple(values.device_mesh.shape)
            raise ValueError(
                f"{name}.values is {values.placements} on a mesh of {mesh}: tensor parallelism of "
                "sparse layers is not supported. Keep them out of the parallelize plan and shard "
                "them with fully_shard alone, or use DistributedDataParallel"
            )


def replicated_parameters(model: nn.Module) -> set[nn.Parameter]:
    """The parameters that stay whole on every rank: soft permutations and DynaDiag's scores.

    For `fully_shard(module, ignored_params=padst_fx.replicated_parameters(model))`, in every call.
    `padst_fx.DST` averages their gradients over the ranks.
    """
    names = ("alpha", "soft_perm")
    return {p for n, p in model.named_parameters() if n.rpartition(".")[2] in names}
