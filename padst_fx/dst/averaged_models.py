"""Averages of a model in training (EMA, SWA), kept at its units and permutations."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from padst_fx.compiled import uncompiled
from padst_fx.dst.columns import Columns
from padst_fx.layers.linear import SparseLinear
from padst_fx.sharding import is_sharded


class AveragedModels:
    """The layers of averaged models beside those they are averages of."""

    def __init__(self) -> None:
        self.pairs: list[tuple[SparseLinear, SparseLinear]] = []

    def add(self, layers: Sequence[tuple[str, SparseLinear]], averaged: nn.Module) -> None:
        """Keep one more averaged model aligned with the layers; it is aligned at once.

        Raises `ValueError`, with nothing changed, for a model that is no copy of theirs, shares
        a layer with theirs, is sharded, or averages its buffers.
        """
        if getattr(averaged, "use_buffers", False):
            raise ValueError(
                f"{type(averaged).__name__} averages its buffers (use_buffers=True), but index and "
                "perm name places and have no mean: make it with use_buffers=False, which copies "
                "buffers, and use torch.optim.swa_utils.update_bn for batch norms"
            )
        modules = dict(_inner(averaged).named_modules())
        pairs = [(layer, _copy_of(name, layer, modules)) for name, layer in layers]
        self.pairs += pairs
        for live, copy in pairs:
            align(copy, live)

    def align(self) -> None:
        """Give every averaged layer the topology that its layer has now."""
        for live, averaged in self.pairs:
            align(averaged, live)

    def clear(self) -> None:
        """Keep none aligned any more."""
        self.pairs = []


def _inner(model: nn.Module) -> nn.Module:
    """The model itself, without wrappers, so that names are those of the averaged one."""
    while True:
        if isinstance(model, (AveragedModel, DistributedDataParallel)):
            model = model.module
        elif (plain := uncompiled(model)) is not model:
            model = plain
        else:
            return model


def _copy_of(name: str, layer: SparseLinear, modules: dict[str, nn.Module]) -> SparseLinear:
    """The copy of a layer in an averaged model."""
    copy = modules.get(name)
    if not isinstance(copy, SparseLinear):
        raise ValueError(
            f"the averaged model has no SparseLinear {name!r}: give the averaged copy itself "
            "(where a wrapper of its own holds it, such as timm's ModelEmaV3, its `.module`)"
        )
    if copy is layer:
        raise ValueError(f"{name} of the averaged model is the trained layer itself, not a copy")
    if (copy.pattern, copy.permutation) != (layer.pattern, layer.permutation):
        raise ValueError(
            f"{name}: the averaged model has {copy.pattern} with permutation "
            f"{copy.permutation!r}, the trained one {layer.pattern} with {layer.permutation!r}"
        )
    if (copy.alpha is None) != (layer.alpha is None):
        raise ValueError(
            f"{name}: only one of the trained and the averaged model has DynaDiag's scores; copy "
            "the model after DST is made"
        )
    if is_sharded(layer.values) or is_sharded(copy.values):
        raise ValueError(
            f"{name}: averages of sharded models are not supported; average whole models, under "
            "DistributedDataParallel or in one process"
        )
    return copy


@torch.no_grad()
def align(averaged: SparseLinear, live: SparseLinear) -> None:
    """Give an average the units and the permutation of its layer, in place.

    A weight between an output and a feature that both masks have keeps its average; one that is
    new to the average starts at zero, as grown weights do (a DynaDiag score where the layer's is).
    """
    _align_units(averaged, live)
    _align_permutation(averaged, live.perm.to(averaged.perm.device), live.soft_perm)


def _align_units(averaged: SparseLinear, live: SparseLinear) -> None:
    pattern, index = live.pattern, live.index.to(averaged.index.device)
    if torch.equal(index, averaged.index):
        return
    old, new = pattern.units_from_index(averaged.index), pattern.units_from_index(index)
    pattern.rearrange([averaged.values], old, new)
    averaged.index.copy_(index)
    if averaged.alpha is not None and live.alpha is not None:
        grown = new[~torch.isin(new, old)]
        averaged.alpha[grown] = live.alpha.to(averaged.alpha)[grown]


def _align_permutation(averaged: SparseLinear, perm: Tensor, matrix: Tensor | None) -> None:
    if matrix is not None:
        if averaged.soft_perm is None:
            averaged.soften()
            averaged.get_parameter("soft_perm").copy_(matrix)
    elif averaged.soft_perm is not None:
        averaged.harden(perm)
    elif not torch.equal(perm, averaged.perm):
        moved = (perm != averaged.perm).nonzero().squeeze(1)
        # Which of the moved positions read, in the average, what each of them is to read.
        order = averaged.perm[moved].argsort()[perm[moved].argsort().argsort()]
        Columns.of(averaged, moved).exchange([averaged.values], order)
        averaged.perm.copy_(perm)
