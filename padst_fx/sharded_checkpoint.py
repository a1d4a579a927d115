"""`save_sharded` and `load_sharded`: a training in the files of `torch.distributed.checkpoint`.

Every rank writes its own part, and any number of ranks may read it again.
"""

from __future__ import annotations

import io
import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from padst_fx.checkpoint_file import CheckpointError
from padst_fx.compiled import plain_name, uncompiled
from padst_fx.dst.manager import DST, unwrapped
from padst_fx.folder_seal import check_seal, is_sealed, seal
from padst_fx.layers.linear import SparseLinear
from padst_fx.sharding import sharded_modules
from padst_fx.state_tree import flatten, restore
from padst_fx.training_fit import (
    Stateful,
    check_groups,
    check_parts,
    check_type,
    checked,
    flattened_parts,
    held_names,
    load_parts,
    parameter_names,
)

# The entry of all that is no tensor of the model's or of the optimizer's.
ENTRY = "training"
SLOTS = "optimizer.state."


def save_sharded(
    path: str | os.PathLike[str],
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    dst: DST,
    *,
    parts: Mapping[str, Stateful] | None = None,
    extra: Any = None,
) -> None:
    """Write the state of a training to the folder `path`; every rank must call it.

    `model` may be wrapped in `DistributedDataParallel`, sharded by `fully_shard`, both or neither,
    and may be compiled. `parts` and `extra` are as in `save_training`; of what differs between
    ranks, the first one's is stored. Call it after `dst.step()`. Raises `RuntimeError` on every
    rank if units or permutations differ between ranks, `ValueError` between a scoring backward and
    `dst.step()`, when each rank has scores of its own, for a `DST` of another optimizer and for a
    part or an `extra` that holds what `save_training` refuses, and `FileExistsError` where a
    complete checkpoint is: it is complete once `path/padst_fx.json`, with the checksum of every
    file, is there.
    """
    from torch.distributed import checkpoint

    inner = checked(optimizer, dst)
    folder = Path(path)
    if is_sealed(folder):
        raise FileExistsError(f"{folder} is a complete checkpoint: save into another folder")
    dst.check_alike()
    if names := dst.collected():
        raise ValueError(
            f"{names[0]} has collected scores that are this rank's own: save after dst.step()"
        )
    tensors: dict[str, Tensor] = {}
    training = {
        "optimizer": {"type": type(inner).__name__, "parameters": _held(inner, model)},
        "dst": dst.state_dict(),
        "parts": flattened_parts(parts, tensors),
        "extra": flatten(extra, "extra", tensors),
        "tensors": tensors,
    }
    with dst.unheard():
        state = _training_state(model, inner)
    checkpoint.save({**state, ENTRY: _first_ranks(_packed(training))}, checkpoint_id=folder)
    seal(folder)


def load_sharded(
    path: str | os.PathLike[str],
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    dst: DST,
    *,
    parts: Mapping[str, Stateful] | None = None,
) -> Any:
    """Go on from `save_sharded`, with any number of ranks; every rank must call it. Returns its
    `extra`.

    Model, optimizer, `dst` and `parts` are made and wrapped as for a new training; the sparsified
    model has to have the structure that was saved. With as many ranks as before, going on is bit
    for bit the same as not having stopped, if all that takes part in the training was saved. Raises
    `CheckpointError`, with nothing changed, for an incomplete checkpoint, a file that does not
    match its checksum (before it is read), a damaged topology, tensors that do not fit, another
    type of optimizer, other parameters in its groups, other slots and other parts, and `ValueError`
    for the state of another method or of other patterns. What `load_state_dict` of a part raises
    comes as it is, with nothing changed either. Only load files you trust:
    `torch.distributed.checkpoint` unpickles what is no tensor, and checksums keep out accidents
    alone.
    """
    from torch.distributed import checkpoint

    inner = checked(optimizer, dst)
    folder = Path(path)
    check_seal(folder)
    saved = checkpoint.FileSystemReader(folder).read_metadata().state_dict_metadata
    packed: dict[str, Any] = {ENTRY: b""}
    if ENTRY not in saved:
        raise CheckpointError(f"{folder} was not written by padst_fx.save_sharded")
    checkpoint.load(packed, checkpoint_id=folder)
    training = _unpacked(packed[ENTRY])
    parts, tensors = parts or {}, training["tensors"]
    check_parts(training["parts"], parts)
    dst.check_fits(training["dst"])
    _check_tensors(folder, _bare(model), saved)
    check_type(training["optimizer"]["type"], inner)
    check_groups(training["optimizer"]["parameters"], _held(inner, model), "soft_perm")
    with dst.unheard():
        _check_slots(model, inner, saved)
        load_parts({k: restore(part, tensors) for k, part in training["parts"].items()}, parts)
        dst.hardening.be_as_soft_as(training["dst"]["hardening"])
        _load_training_state(folder, model, inner, saved)
    dst.load_state_dict(training["dst"])
    return restore(training["extra"], tensors)


def _bare(model: nn.Module) -> nn.Module:
    """The model without the wrappers around all of it."""
    return uncompiled(unwrapped(uncompiled(model)))


def _held(optimizer: torch.optim.Optimizer, model: nn.Module) -> list[list[str]]:
    """The names of the parameters of each of the optimizer's groups."""
    bare = _bare(model)
    # A forward may have left whole parameters in place of the sharded ones that it holds.
    for module in sharded_modules(bare):
        module.reshard()
    return held_names(optimizer, parameter_names(bare))


def _training_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Model and optimizer by plain names; sharded tensors stay sharded."""
    from torch.distributed.checkpoint.state_dict import get_state_dict

    model_state, optimizer_state = get_state_dict(model, optimizer)
    return {"model": model_state, "optimizer": optimizer_state}


def _load_training_state(
    folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, saved: dict[str, Any]
) -> None:
    """Read into the model and the optimizer; parameters that had no state get none, and settings
    that the checkpoint lacks stay."""
    from torch.distributed import checkpoint
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_state_dict

    optimizer.state.clear()
    optimizer.zero_grad()
    state = _training_state(model, optimizer)
    slots, groups = state["optimizer"]["state"], state["optimizer"]["param_groups"]
    for name in slots.keys() - _saved_slots(saved, slots).keys():
        del slots[name]
    own = [_unsaved_settings(number, group, saved) for number, group in enumerate(groups)]
    for group, settings in zip(groups, own, strict=True):
        for key in settings:
            del group[key]
    checkpoint.load(state, checkpoint_id=folder)
    for group, settings in zip(groups, own, strict=True):
        group.update(settings)
    set_state_dict(
        model,
        optimizer,
        model_state_dict=state["model"],
        optim_state_dict=state["optimizer"],
        options=StateDictOptions(strict=False),
    )


def _check_slots(
    model: nn.Module, optimizer: torch.optim.Optimizer, saved: dict[str, Any]
) -> None:
    """Raise `CheckpointError` unless the optimizer, once it has stepped, keeps for each parameter
    what is there of it, in its shape; nothing is changed."""
    with _as_new(optimizer):
        slots = _training_state(model, optimizer)["optimizer"]["state"]
    names = set(parameter_names(_bare(model)).values())
    for name, theirs in _saved_slots(saved, names).items():
        own = slots.get(name, {})
        if theirs.keys() != own.keys():
            raise CheckpointError(
                f"the optimizer keeps {sorted(own)} of {name}, in the checkpoint there are "
                f"{sorted(theirs)}"
            )
        for key, found in theirs.items():
            size = getattr(found, "size", None)
            if isinstance(own[key], Tensor) and size is not None and size != own[key].size():
                raise CheckpointError(
                    f"the optimizer's {key} of {name} is {tuple(size)} in the checkpoint and "
                    f"{tuple(own[key].size())} in the optimizer"
                )


def _saved_slots(saved: dict[str, Any], names: Collection[str]) -> dict[str, dict[str, Any]]:
    """What the checkpoint has of the optimizer's state of the parameters of these names."""
    found: dict[str, dict[str, Any]] = {}
    for key, entry in saved.items():
        if not key.startswith(SLOTS):
            continue
        name, slot = key.removeprefix(SLOTS), ""
        while name and name not in names:
            name, _, slot = name.rpartition(".")
        if name:
            found.setdefault(name, {})[slot] = entry
    return found


def _unsaved_settings(number: int, group: dict[str, Any], saved: dict[str, Any]) -> dict[str, Any]:
    """The settings of a group that the checkpoint lacks: a scheduler has added some."""
    start = f"optimizer.param_groups.{number}."
    there = {key.removeprefix(start).partition(".")[0] for key in saved if key.startswith(start)}
    return {key: setting for key, setting in group.items() if key not in there}


@contextmanager
def _as_new(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """The optimizer without a state and its parameters without gradients, for a while."""
    held = dict(optimizer.state)
    gradients = [(p, p.grad) for group in optimizer.param_groups for p in group["params"]]
    optimizer.state.clear()
    optimizer.zero_grad()
    try:
        yield
    finally:
        optimizer.state.clear()
        optimizer.state.update(held)
        for parameter, gradient in gradients:
            parameter.grad = gradient


def _check_tensors(folder: Path, model: nn.Module, saved: dict[str, Any]) -> None:
    """Raise `CheckpointError` unless the model's tensors are there in their shapes and every
    saved topology is one; nothing is changed."""
    from torch.distributed import checkpoint
    from torch.distributed.checkpoint.state_dict import get_model_state_dict

    state: dict[str, Any] = get_model_state_dict(model)
    soft = {name for name in state if name.rpartition(".")[2] == "soft_perm"}
    for name in state.keys() - soft:
        found = saved.get(f"model.{name}")
        if found is None:
            raise CheckpointError(f"the checkpoint lacks {name}, which the model has")
        if found.size != state[name].size():
            raise CheckpointError(
                f"{name} is {tuple(found.size)} in the checkpoint and {tuple(state[name].size())} "
                "in the model"
            )
    layers = {
        plain_name(n): m for n, m in model.named_modules() if isinstance(m, SparseLinear)
    }
    topologies: dict[str, Tensor] = {
        key: torch.empty_like(state[key])
        for name in layers
        for key in (_key(name, "index"), _key(name, "perm"))
    }
    checkpoint.load({"model": topologies}, checkpoint_id=folder)
    for name, layer in layers.items():
        index, perm = topologies[_key(name, "index")], topologies[_key(name, "perm")]
        if fault := layer.topology_fault(index, perm):
            raise CheckpointError(f"{name or 'the layer'} is damaged: {fault}")


def _key(layer: str, tensor: str) -> str:
    return f"{layer}.{tensor}" if layer else tensor


def _packed(state: dict[str, Any]) -> bytes:
    """One entry of the checkpoint, whatever is or is not in it."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def _first_ranks(packed: bytes) -> bytes:
    """What the first rank has: of an entry that all have, torch takes any rank's."""
    if not (dist.is_available() and dist.is_initialized()):
        return packed
    held = [packed]
    dist.broadcast_object_list(held, src=0)
    return held[0]


def _unpacked(packed: bytes) -> dict[str, Any]:
    return torch.load(io.BytesIO(packed), weights_only=True)
