"""`save_sharded` and `load_sharded`: a training in the files of `torch.distributed.checkpoint`.

Every rank writes its own part, and any number of ranks may read it again.
"""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from padst_fx.checkpoint_file import CheckpointError
from padst_fx.compiled import plain_name
from padst_fx.dst.manager import DST, unwrapped
from padst_fx.folder_seal import check_seal, is_sealed, seal
from padst_fx.layers.linear import SparseLinear


def save_sharded(
    path: str | os.PathLike[str], model: nn.Module, optimizer: torch.optim.Optimizer, dst: DST
) -> None:
    """Write the state of a training to the folder `path`; every rank must call it.

    `model` may be wrapped in `DistributedDataParallel`, sharded by `fully_shard`, both or neither,
    and may be compiled. Call it after `dst.step()`. Raises `RuntimeError` on every rank if units or
    permutations differ between ranks, `ValueError` between a scoring backward and `dst.step()`,
    when each rank has scores of its own, and `FileExistsError` where a complete checkpoint is: it
    is complete once `path/padst_fx.json`, with the checksum of every file, is there.
    """
    from torch.distributed import checkpoint

    folder = Path(path)
    if is_sealed(folder):
        raise FileExistsError(f"{folder} is a complete checkpoint: save into another folder")
    dst.check_alike()
    if names := dst.collected():
        raise ValueError(
            f"{names[0]} has collected scores that are this rank's own: save after dst.step()"
        )
    with dst.unheard():
        state = _training_state(model, optimizer)
    checkpoint.save({**state, "dst": _packed(dst.state_dict())}, checkpoint_id=folder)
    seal(folder)


def load_sharded(
    path: str | os.PathLike[str], model: nn.Module, optimizer: torch.optim.Optimizer, dst: DST
) -> None:
    """Go on from `save_sharded`, with any number of ranks; every rank must call it.

    Model, optimizer and `dst` are made and wrapped as for a new training; the sparsified model has
    to have the structure that was saved. With as many ranks as before, going on is bit for bit the
    same as not having stopped. Raises `CheckpointError`, with nothing changed, for an incomplete
    checkpoint, a file that does not match its checksum (before it is read), a damaged topology and
    tensors that do not fit, and `ValueError` for the state of another method or of other patterns.
    Only load files you trust: `torch.distributed.checkpoint` unpickles what is no tensor, and
    checksums keep out accidents alone.
    """
    from torch.distributed import checkpoint

    folder = Path(path)
    check_seal(folder)
    saved = checkpoint.FileSystemReader(folder).read_metadata().state_dict_metadata
    packed: dict[str, Any] = {"dst": b""}
    if "dst" not in saved:
        raise CheckpointError(f"{folder} was not written by padst_fx.save_sharded")
    checkpoint.load(packed, checkpoint_id=folder)
    state = _unpacked(packed["dst"])
    dst.check_fits(state)
    _check_tensors(folder, unwrapped(model), saved)
    dst.hardening.be_as_soft_as(state["hardening"])
    with dst.unheard():
        _load_training_state(folder, model, optimizer, saved)
    dst.load_state_dict(state)


def _training_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Model and optimizer by plain names; sharded tensors stay sharded."""
    from torch.distributed.checkpoint.state_dict import get_state_dict

    model_state, optimizer_state = get_state_dict(model, optimizer)
    return {"model": model_state, "optimizer": optimizer_state}


def _load_training_state(
    folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, saved: dict[str, Any]
) -> None:
    """Read into the model and the optimizer; parameters that had no state in it get none."""
    from torch.distributed import checkpoint
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_state_dict

    state = _training_state(model, optimizer)
    slots = state["optimizer"]["state"]
    for name in list(slots):
        if not any(key.startswith(f"optimizer.state.{name}.") for key in saved):
            del slots[name]
    checkpoint.load(state, checkpoint_id=folder)
    set_state_dict(
        model,
        optimizer,
        model_state_dict=state["model"],
        optim_state_dict=state["optimizer"],
        options=StateDictOptions(strict=False),
    )


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


def _unpacked(packed: bytes) -> dict[str, Any]:
    return torch.load(io.BytesIO(packed), weights_only=True)
