"""The optimizer's state of a parameter: which tensors move with its units."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from padst_fx.layers.linear import SparseLinear


def unwrapped(optimizer: object) -> torch.optim.Optimizer:
    """The `torch.optim.Optimizer` itself, also from a wrapper that holds it as `.optimizer`."""
    inner = optimizer
    while not isinstance(inner, torch.optim.Optimizer) or _is_view(inner):
        inner = getattr(inner, "optimizer", None)
        if inner is None:
            raise TypeError(
                f"optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}"
            )
    return inner


def _is_view(optimizer: torch.optim.Optimizer) -> bool:
    """Whether an optimizer only shows another's state, as the one of Hugging Face's Accelerate.

    It never steps itself, so its hooks would not be called.
    """
    inner = getattr(optimizer, "optimizer", None)
    return isinstance(inner, torch.optim.Optimizer) and optimizer.state is inner.state


def base_optimizer(optimizer: object) -> torch.optim.Optimizer:
    """The optimizer itself, or a `ValueError` if its state is not kept per parameter."""
    inner = unwrapped(optimizer)
    if isinstance(inner, torch.optim.LBFGS) or hasattr(inner, "optim"):
        raise ValueError(
            f"{type(inner).__name__} does not keep its state per parameter, so DST cannot move "
            "units in it. Use an optimizer that does (SGD, Adam, AdamW, ...)"
        )
    return inner


def check_holds(
    optimizer: torch.optim.Optimizer, layers: Iterable[tuple[str, SparseLinear]]
) -> None:
    """Raise `ValueError` unless the optimizer holds every layer's values."""
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    missing = [name for name, layer in layers if id(layer.values) not in held]
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise ValueError(
            f"the optimizer does not hold the sparse values of {', '.join(missing[:3])}{more}; "
            "build it after sparsify (or load), from the model's present parameters"
        )


def slots(optimizer: torch.optim.Optimizer, name: str, parameter: nn.Parameter) -> list[Tensor]:
    """The state tensors shaped like the parameter: momenta, second moments and their kin.

    Scalars such as step counts are left alone. Raises `ValueError` for a tensor of any other
    shape, since units cannot be moved in it (Adafactor's factored moments).
    """
    found = []
    for key, state in optimizer.state.get(parameter, {}).items():
        if not isinstance(state, Tensor):
            continue
        if state.shape != parameter.shape:
            if state.numel() <= 1:
                continue
            raise ValueError(
                f"{type(optimizer).__name__} keeps {key!r} of shape {tuple(state.shape)} for "
                f"{name} of shape {tuple(parameter.shape)}: units cannot be moved in it. Use an "
                "optimizer whose state has the parameter's shape (SGD, Adam, AdamW, ...)"
            )
        found.append(state)
    return found


def move_to_own_group(
    optimizer: torch.optim.Optimizer, parameters: dict[str, nn.Parameter], **settings: float
) -> None:
    """Put named parameters into one last group of their own, taking them from where they are.

    So the groups are the same whether an optimizer was built before or after the parameters
    came to be, and a saved optimizer state fits both. Without parameters the group is empty.
    """
    moving = {id(parameter) for parameter in parameters.values()}
    for group in optimizer.param_groups:
        kept = [i for i, parameter in enumerate(group["params"]) if id(parameter) not in moving]
        for key in ("params", "param_names"):
            if key in group:
                group[key] = [group[key][i] for i in kept]
    optimizer.param_groups[:] = [group for group in optimizer.param_groups if group["params"]]
    named = any("param_names" in group for group in optimizer.param_groups)
    listed = list(parameters.items()) if named else list(parameters.values())
    optimizer.add_param_group({"params": listed, **settings})


def forget(optimizer: torch.optim.Optimizer, parameters: Iterable[nn.Parameter]) -> None:
    """Take parameters out of the optimizer with their state; their groups stay, maybe empty."""
    leaving = {id(parameter): parameter for parameter in parameters}
    for group in optimizer.param_groups:
        kept = [i for i, parameter in enumerate(group["params"]) if id(parameter) not in leaving]
        for key in ("params", "param_names"):
            if key in group:
                group[key] = [group[key][i] for i in kept]
    for parameter in leaving.values():
        optimizer.state.pop(parameter, None)
