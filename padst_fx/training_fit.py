"""What a saved training must have in common with the one that goes on from it: optimizer, parts."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from padst_fx.checkpoint_file import CheckpointError
from padst_fx.compiled import plain_name, uncompiled
from padst_fx.dst import DST
from padst_fx.dst.optimizer_state import unwrapped
from padst_fx.state_tree import flatten


class Stateful(Protocol):
    """A scheduler, a gradient scaler, a sampler: what has a state and takes it back."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> Any: ...


def checked(optimizer: torch.optim.Optimizer, dst: DST | None) -> torch.optim.Optimizer:
    """The optimizer without wrappers. Raises `ValueError` for a `DST` of another optimizer."""
    inner = unwrapped(optimizer)
    if dst is not None and dst.optimizer is not inner:
        raise ValueError("dst was made for another optimizer than the one given")
    return inner


def parameter_names(model: nn.Module) -> dict[nn.Parameter, str]:
    """Every parameter's name as it is without `torch.compile`."""
    return {p: plain_name(name) for name, p in uncompiled(model).named_parameters()}


def held_names(
    optimizer: torch.optim.Optimizer, names: Mapping[nn.Parameter, str]
) -> list[list[str]]:
    """The names of the parameters of each group, "" for one that is not the model's."""
    return [[names.get(p, "") for p in group["params"]] for group in optimizer.param_groups]


def check_type(saved: str, optimizer: torch.optim.Optimizer) -> None:
    """Raise `CheckpointError` for the state of another type of optimizer."""
    if saved != type(optimizer).__name__:
        raise CheckpointError(
            f"the checkpoint has the state of {saved}, the optimizer is {type(optimizer).__name__}"
        )


def check_groups(saved: list[list[str]], mine: list[list[str]], moved: str | None) -> None:
    """Raise `CheckpointError` unless the groups hold parameters of the same names in one order.

    Parameters called `moved` come and go: a `DST` gives those that are there to the optimizer.
    """
    for number, (theirs, own) in enumerate(zip(saved, mine, strict=False)):
        theirs, own = ([n for n in group if n.split(".")[-1] != moved] for group in (theirs, own))
        if theirs != own:
            differing = sorted(set(theirs) ^ set(own)) or "their order"
            raise CheckpointError(
                f"the optimizer's group {number} holds other parameters than in the checkpoint; "
                f"they differ in {differing!s:.200}"
            )
    if len(saved) != len(mine):
        raise CheckpointError(
            f"the optimizer has {len(mine)} parameter groups, in the checkpoint there are "
            f"{len(saved)}"
        )


def flattened_parts(
    parts: Mapping[str, Stateful] | None, tensors: dict[str, Tensor]
) -> dict[str, Any]:
    """The states of the parts by name, their tensors put into `tensors`.

    Raises `ValueError` for a state that holds what `flatten` does not take.
    """
    return {name: flatten(part.state_dict(), name, tensors) for name, part in (parts or {}).items()}


def check_parts(saved: Mapping[str, Any], parts: Mapping[str, Stateful]) -> None:
    """Raise `CheckpointError` unless parts of the same names are given."""
    if differing := sorted(saved.keys() ^ parts.keys()):
        raise CheckpointError(
            f"the checkpoint has the parts {sorted(saved)}, given are {sorted(parts)}; "
            f"they differ in {differing}"
        )


def load_parts(saved: Mapping[str, Any], parts: Mapping[str, Stateful]) -> None:
    """Load them all, or none: one that raises gives all their old states back."""
    before = {name: copy.deepcopy(part.state_dict()) for name, part in parts.items()}
    try:
        for name, part in parts.items():
            part.load_state_dict(saved[name])
    except BaseException:
        for name, part in parts.items():
            part.load_state_dict(before[name])
        raise
