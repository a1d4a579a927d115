"""The optimizer's state of a parameter: which tensors move with its units."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten_with_path

from padst_fx.layers.linear import SparseLinear
from padst_fx.sharding import is_sharded, whole_tensors

INSTEAD = "Use an optimizer whose state has the parameter's shape (SGD, Adam, AdamW, ...)"
# What a slot of a fresh weight holds where that is not zero: a setting of its parameter's group.
FRESH = {
    (torch.optim.Rprop, "step_size"): "lr",
    (torch.optim.Adagrad, "sum"): "initial_accumulator_value",
}


def unwrapped(optimizer: object) -> torch.optim.Optimizer:
    """The `torch.optim.Optimizer` itself, also from wrappers that hold it as `.optimizer`."""
    inner = optimizer
    while (held := getattr(inner, "optimizer", None)) is not None:
        inner = held
    if not isinstance(inner, torch.optim.Optimizer):
        raise TypeError(
            f"optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}"
        )
    return inner


def base_optimizer(optimizer: object) -> torch.optim.Optimizer:
    """The optimizer without wrappers, or a `ValueError` if DST cannot move units in its state.

    Refused are optimizers whose state is not kept per parameter, that have a state beside the one
    of an optimizer inside them, and that take a parameter for the matrix of a linear map.
    """
    inner = unwrapped(optimizer)
    names = [kind.__name__ for kind in type(inner).__mro__]
    if any("muon" in name.lower() for name in names):
        raise ValueError(
            f"{type(inner).__name__} orthogonalizes its parameters as matrices, but values have "
            "their structure's layout. Give it the dense matrices, and the sparse values with all "
            "else to an optimizer that works weight by weight (SGD, Adam, AdamW, ...): that one "
            "is for DST"
        )
    wrapper = _with_own_state(optimizer, inner)
    if isinstance(inner, torch.optim.LBFGS) or wrapper is not None:
        raise ValueError(
            f"{type(wrapper or inner).__name__} does not keep its state per parameter, so DST "
            "cannot move units in it. Use an optimizer that does (SGD, Adam, AdamW, ...)"
        )
    return inner


def _with_own_state(optimizer: object, inner: torch.optim.Optimizer) -> object | None:
    """An optimizer around another that keeps more than that one's state, if there is any."""
    layer = optimizer
    while layer is not inner:
        if getattr(layer, "state", inner.state) is not inner.state:
            return layer
        layer = layer.optimizer  # type: ignore[attr-defined]
    within = any(isinstance(held, torch.optim.Optimizer) for held in vars(inner).values())
    return inner if within else None


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


def slots(
    optimizer: torch.optim.Optimizer, name: str, parameter: nn.Parameter
) -> list[tuple[Tensor, float]]:
    """The state tensors shaped like the parameter (momenta, second moments and their kin), each
    with what it holds for a fresh weight.

    Scalars such as step counts are left alone. Raises `ValueError` for anything else, since units
    cannot be moved in it: tensors of other shapes (Adafactor's factored moments), subclasses with
    a layout of their own (quantized moments), and objects.
    """
    found = []
    for path, state in tree_flatten_with_path(optimizer.state.get(parameter, {}))[0]:
        key = str(getattr(path[0], "key", path[0]))
        if isinstance(state, Tensor):
            if state.shape == parameter.shape and _is_plain(state):
                found.append((state, _fresh(optimizer, parameter, key)))
            elif state.numel() > 1:
                kind = "" if _is_plain(state) else f" ({type(state).__name__})"
                raise ValueError(
                    f"{type(optimizer).__name__} keeps {key!r} of shape {tuple(state.shape)}{kind} "
                    f"for {name} of shape {tuple(parameter.shape)}: units cannot be moved in it. "
                    f"{INSTEAD}"
                )
        elif not isinstance(state, (type(None), bool, int, float, complex, str)):
            raise ValueError(
                f"{type(optimizer).__name__} keeps {key!r}, a {type(state).__name__}, for {name}: "
                f"units cannot be moved in it. {INSTEAD}"
            )
    return found


def _is_plain(tensor: Tensor) -> bool:
    return type(tensor) in (Tensor, nn.Parameter) or is_sharded(tensor)


def _fresh(optimizer: torch.optim.Optimizer, parameter: nn.Parameter, key: str) -> float:
    """What a slot of a fresh weight holds."""
    for (kind, slot), setting in FRESH.items():
        if isinstance(optimizer, kind) and slot == key:
            groups = optimizer.param_groups
            own = next(g for g in groups if any(p is parameter for p in g["params"]))
            return float(own[setting])
    return 0.0


@contextmanager
def movable(
    optimizer: torch.optim.Optimizer, name: str, layer: SparseLinear
) -> Iterator[list[Tensor]]:
    """The values of a layer, their slots and a gradient still there, whole, to move units in.

    What the move leaves at zero in all of them is new: its slots then get what those of a fresh
    weight hold.
    """
    held = slots(optimizer, f"{name}.values", layer.values)
    tensors = [layer.values, *(slot for slot, _ in held)]
    if layer.values.grad is not None:
        tensors.append(layer.values.grad)
    with whole_tensors(tensors) as gathered:
        if not any(fresh for _, fresh in held):
            yield gathered
            return
        # Moved along, it tells which weights are new.
        kept = torch.ones_like(gathered[0])
        yield [*gathered, kept]
        new = kept.detach().neg_().add_(1)
        for slot, (_, fresh) in zip(gathered[1 : 1 + len(held)], held, strict=True):
            slot.add_(new, alpha=fresh)


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
