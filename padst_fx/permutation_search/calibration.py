"""How strong each input feature of each projection is on example batches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from padst_fx.layers.attention import MultiheadAttention
from padst_fx.layers.attention_weights import PROJECTIONS
from padst_fx.projections import Projection

# One batch: a tensor, a tuple of arguments or a dict of keyword arguments; or an iterable of such.
Calibration = Any


@torch.no_grad()
def input_norms(
    model: nn.Module, projections: Sequence[Projection], calibration: Calibration
) -> dict[str, Tensor]:
    """The L2 norm over all tokens of every input feature, float64 `[in]`, by projection name.

    Runs the model on every batch, in evaluation mode and without gradients; hooks and modes are
    as before afterwards, whatever happens. A module that is called several times adds up.

    Raises `ValueError` if there is no batch, for a projection that no batch reaches and for norms
    that are not finite; what the model itself raises goes through.
    """
    squares: dict[str, Tensor] = {}
    runs = 0
    with ExitStack() as stack:
        stack.enter_context(_evaluating(model))
        for name, module in _readers(model, projections, stack):
            hook = _collect(squares, name)
            stack.callback(module.register_forward_pre_hook(hook, with_kwargs=True).remove)
        for batch in _batches(calibration):
            _call(model, batch)
            runs += 1
    if not runs:
        raise ValueError("calibration has no batch")
    _check(squares, projections)
    return {name: square.sqrt() for name, square in squares.items()}


def _batches(calibration: Calibration) -> Iterable[Any]:
    single = isinstance(calibration, (Tensor, tuple, dict))
    if not single and not isinstance(calibration, Iterable):
        raise TypeError(
            "calibration must be a batch (a tensor, a tuple of arguments or a dict of keyword "
            f"arguments) or an iterable of batches, got {type(calibration).__name__}"
        )
    return (calibration,) if single else calibration


def _call(model: nn.Module, batch: Any) -> None:
    if isinstance(batch, dict):
        model(**batch)
    else:
        model(*(batch if isinstance(batch, (tuple, list)) else (batch,)))


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, without the fused paths that call no submodule."""
    modes = {module: module.training for module in model.modules()}
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    model.eval()
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
        for module, training in modes.items():
            module.training = training


def _readers(
    model: nn.Module, projections: Sequence[Projection], stack: ExitStack
) -> Iterator[tuple[str, nn.Module]]:
    """Modules whose input is that of a projection.

    `nn.MultiheadAttention` calls no module for its projections: a copy that does runs beside it.
    """
    copies: dict[str, MultiheadAttention] = {}
    for projection in projections:
        owner = model.get_submodule(projection.owner)
        if not isinstance(owner, nn.MultiheadAttention):
            yield projection.name, owner
            continue
        if projection.owner not in copies:
            copies[projection.owner] = copy = MultiheadAttention.from_dense(owner).eval()
            handle = owner.register_forward_pre_hook(_run_beside(copy), with_kwargs=True)
            stack.callback(handle.remove)
        name = projection.name.rpartition(".")[2]
        assert name in PROJECTIONS
        yield projection.name, copies[projection.owner].get_submodule(name)


def _run_beside(copy: nn.Module) -> Any:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        copy(*args, **kwargs)

    return hook


def _collect(squares: dict[str, Tensor], name: str) -> Any:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x = args[0] if args else next(iter(kwargs.values()))
        square = x.reshape(-1, x.shape[-1]).double().square().sum(0)
        squares[name] = squares[name] + square if name in squares else square

    return hook


def _check(squares: dict[str, Tensor], projections: Sequence[Projection]) -> None:
    missed = [projection.name for projection in projections if projection.name not in squares]
    if missed:
        raise ValueError(
            f"calibration never reaches {', '.join(missed)}; exclude them or give a batch that does"
        )
    for name, square in squares.items():
        if not bool(torch.isfinite(square).all()):
            raise ValueError(f"calibration gives {name} inputs that are not finite")
