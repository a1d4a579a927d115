"""`sparsify`, and its inverse `densify`: projections swapped in place."""

from __future__ import annotations

from typing import Any

from torch import nn

from padst_fx import selection
from padst_fx.distribution import Distribution
from padst_fx.layers.attention import MultiheadAttention
from padst_fx.layers.fast_path import bar_fast_paths
from padst_fx.layers.linear import SparseLinear
from padst_fx.permutation_search import Calibration
from padst_fx.planning import Permutation, Plan, PlanEntry, plan
from padst_fx.structures import Structure


def sparsify(
    model: nn.Module,
    structure: str | Structure,
    sparsity: float | None = None,
    *,
    permutation: Permutation | None = None,
    distribution: Distribution = "uniform",
    include: selection.Selectors = None,
    exclude: selection.Selectors = None,
    init: str = "auto",
    example_inputs: Any = None,
    skip_slower_at: int | None = None,
    calibration: Calibration = None,
) -> nn.Module:
    """Replace the projections of `model` by structured-sparse ones, in place; returns the model.

    `structure` is a name ("diag", "block", "nm", "n:m", "unstructured") or a `Structure`;
    `sparsity` the fraction of zeros in [0, 1). `permutation` is "identity", "random", "learned" (a
    shuffle that `DST` moves at updates), "soft" (dense matrices that `DST` trains and hardens), or
    `{name or glob: kind}` with the identity for the others; None is "learned" before fresh weights
    in dense tiles (`Block`, `Diag(width=w)`) and else "identity" (docs/study.md says why). A layer
    that starts from trained weights behind a learned one gets the permutation and the units that
    together keep most of them (`padst_fx.permutation_search`). `distribution` is "uniform", "erk",
    `{name or glob: sparsity}` or a callable. `include` and `exclude` are names or globs of modules,
    or callables `(module, name) -> bool`; the name of an `nn.MultiheadAttention` stands for its
    four projections. Heads stay dense unless asked for by name. `init` is "magnitude" (keep the
    strongest units), "random" (fresh units and values), or "auto": random for weights that look
    freshly drawn. With `example_inputs` (a tensor, a tuple of arguments or a dict of keyword
    arguments) the exported graph says which projection plays which role; else names and the module
    tree do. With `skip_slower_at` projections that are predicted to be slower than dense at that
    many tokens stay dense. With `calibration`, a batch or batches of inputs, weights count as much
    as they times the norm of the feature they read.

    Raises what `plan` raises, before anything is changed. Build the optimizer afterwards.
    """
    return apply_plan(
        model,
        plan(
            model,
            structure,
            sparsity,
            permutation=permutation,
            distribution=distribution,
            include=include,
            exclude=exclude,
            init=init,
            example_inputs=example_inputs,
            skip_slower_at=skip_slower_at,
            calibration=calibration,
        ),
    )


def apply_plan(model: nn.Module, decided: Plan) -> nn.Module:
    """Carry out a plan: every new layer is built before the first one is swapped in."""
    attentions: dict[str, MultiheadAttention] = {}
    layers: dict[str, nn.Module] = {}
    for entry in decided.replaced:
        owner = model.get_submodule(entry.projection.owner)
        if isinstance(owner, nn.MultiheadAttention):
            if entry.projection.owner not in attentions:
                attentions[entry.projection.owner] = MultiheadAttention.from_dense(owner)
            attention = attentions[entry.projection.owner]
            name = entry.projection.name.rpartition(".")[2]
            sparse = _sparse_layer(attention.get_submodule(name), entry)
            setattr(attention, name, sparse)
        else:
            layers[entry.projection.owner] = _sparse_layer(owner, entry)
    return swap_modules(model, {**layers, **attentions})


def _sparse_layer(dense: nn.Module, entry: PlanEntry) -> SparseLinear:
    assert entry.pattern is not None and entry.init is not None
    layer = SparseLinear.from_dense(
        dense,
        entry.pattern,
        permutation=entry.permutation,
        init=entry.init,
        perm=entry.perm,
        norms=entry.norms,
    )
    layer.role = entry.projection.role
    return layer


def swap_modules(model: nn.Module, replacements: dict[str, nn.Module]) -> nn.Module:
    """Put new modules at the given names, and wherever else the old ones are registered.

    Bias parameters live on in the new modules.
    """
    pairs = [(model.get_submodule(name), new) for name, new in replacements.items()]
    for old, new in pairs:
        _carry_bias(old, new)
    by_identity = {id(old): new for old, new in pairs}
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            if child is not None and id(child) in by_identity:
                parent._modules[name] = by_identity[id(child)]
    bar_fast_paths(model)
    return model


def _carry_bias(old: nn.Module, new: nn.Module) -> None:
    """Keep the very `Parameter`: it may be tied, and an optimizer may hold it."""
    if isinstance(old, (nn.MultiheadAttention, MultiheadAttention)):
        old, new = old.get_submodule("out_proj"), new.get_submodule("out_proj")
    if isinstance(bias := getattr(old, "bias", None), nn.Parameter):
        new.bias = bias


def densify(model: nn.Module) -> nn.Module:
    """Replace every sparse layer by a plain dense module of the original class, in place.

    The outputs stay the same. Returns the model, or the new module where the model itself is a
    `SparseLinear` or an attention. Raises `ValueError` for a model without sparse layers and
    `TypeError` for an attention with a projection of another kind, before anything is changed.
    """
    dense: dict[nn.Module, nn.Module] = {
        module: module.to_dense() for module in model.modules() if isinstance(module, SparseLinear)
    }
    if not dense:
        raise ValueError("nothing to densify: the model has no SparseLinear")
    joined: dict[nn.Module, nn.Module] = {
        module: _joined(name, module, dense)
        for name, module in model.named_modules()
        if isinstance(module, MultiheadAttention)
    }
    replacements = {**dense, **joined}
    if model in replacements:
        _carry_bias(model, replacements[model])
        return replacements[model]
    names = {name: module for name, module in model.named_modules() if module in replacements}
    return swap_modules(model, {name: replacements[module] for name, module in names.items()})


def _joined(
    name: str, attention: MultiheadAttention, dense: dict[nn.Module, nn.Module]
) -> nn.MultiheadAttention:
    try:
        return attention.to_dense(dense)
    except TypeError as error:
        place = f"{name}." if name else ""
        raise TypeError(f"cannot densify: {place}{error}") from error
