"""Learned permutations: hard at every step, moved only by updates."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from padst_fx.dst import agreement
from padst_fx.dst.optimizer_state import slots
from padst_fx.dst.statistics import PermutationUpdate
from padst_fx.layers.linear import SparseLinear


@dataclass(frozen=True)
class LearnedPermutation:
    """How updates move learned permutations."""

    fraction: float = 0.3
    positions: int = 256
    variant: str = "target"
    whiten: float = 0.0
    lam: float | None = None


@dataclass
class PermutationState:
    """A layer with a learned permutation and the signal collected for its next update."""

    name: str
    layer: SparseLinear
    signal: Tensor | None = None
    _armed: bool = False
    _handle: RemovableHandle | None = field(default=None, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_handle": None}

    @property
    def positions(self) -> Tensor:
        assert self.layer.positions is not None
        return self.layer.positions

    @property
    def probe(self) -> Tensor:
        assert self.layer.permutation_probe is not None
        return self.layer.permutation_probe

    def arm(self, positions: Tensor) -> None:
        if not self._armed:
            self.positions.copy_(positions)
            self._armed = True
        if self._handle is None:
            probe = self.probe.requires_grad_(True)
            self._handle = probe.register_post_accumulate_grad_hook(self._collect)

    def disarm(self) -> None:
        if self._handle is not None:
            self._handle.remove()
            self._handle = None
        self._armed = False
        self.probe.requires_grad_(False)
        self.forget()

    def forget(self) -> None:
        self.probe.grad = None
        self.signal = None

    def _collect(self, probe: Tensor) -> None:
        assert probe.grad is not None
        arrived, probe.grad = probe.grad.detach(), None
        self.signal = arrived if self.signal is None else self.signal + arrived


def assign(score: Tensor) -> Tensor:
    from scipy.optimize import linear_sum_assignment

    _, columns = linear_sum_assignment(score.double().cpu().numpy(), maximize=True)
    return torch.from_numpy(columns.astype(np.int64))


def choose(
    signal: Tensor, values: Tensor, mask: Tensor, fraction: float, settings: LearnedPermutation
) -> Tensor:
    outputs, n = values.shape
    gradient, moments = signal[:outputs].double(), signal[outputs:].double()
    values, mask = values.double(), mask.double()
    sigma = moments.diagonal()
    count = round(fraction * n)
    identity = torch.arange(n)
    if settings.whiten:
        ridge = settings.whiten * sigma.mean() * torch.eye(n, dtype=sigma.dtype)
        wanted = -torch.linalg.solve(moments + ridge, gradient, left=False)
    else:
        wanted = -gradient / sigma
    energy = (values.square() * mask).sum(0) * sigma
    if settings.variant == "weakest":
        chosen = energy.argsort(stable=True)[:count]
        score = (mask[:, chosen].t() @ (wanted[:, chosen].square() * sigma[chosen]))
        order = identity.clone()
        order[chosen] = chosen[assign(score)]
        return order

    def attempt(lam: float) -> Tensor:
        target = wanted + lam * values
        return assign(mask.t() @ (target.square() * sigma))

    if settings.lam is not None:
        return attempt(settings.lam)
    base = float(wanted.square().mean().sqrt() / values.square().mean().sqrt())
    low, high = base * 1e-3, base * 1e3
    best = identity
    for _ in range(12):
        middle = (low * high) ** 0.5
        order = attempt(middle)
        moved = int((order != identity).sum())
        if moved > count:
            low = middle
        else:
            best, high = order, middle
    return best


class PermutationUpdates:
    """The learned permutations of a model: collects signals, decides, moves."""

    def __init__(
        self,
        layers: list[tuple[str, SparseLinear]],
        settings: LearnedPermutation,
        group: dist.ProcessGroup | None,
        seed: int,
    ) -> None:
        self.settings = settings
        self.group = group
        self.seed = seed
        self.states = []
        for name, layer in layers:
            if layer.permutation != "learned":
                continue
            layer.consider_positions(min(layer.in_features, settings.positions))
            self.states.append(PermutationState(name, layer))

    def arm(self, step: int) -> None:
        for state in self.states:
            generator = torch.Generator().manual_seed(self.seed + step)
            order = torch.randperm(state.layer.in_features, generator=generator)
            state.arm(order[: len(state.positions)].sort().values)

    def disarm(self) -> None:
        for state in self.states:
            state.disarm()

    def forget(self) -> None:
        for state in self.states:
            state.forget()

    def update(self, share: float, optimizer) -> tuple[PermutationUpdate, ...]:
        return tuple(
            self._move(state, share * self.settings.fraction, optimizer)
            for state in self.states
            if state.signal is not None
        )

    def _move(self, state: PermutationState, fraction: float, optimizer) -> PermutationUpdate:
        layer, positions = state.layer, state.positions.long()
        mask = layer.pattern.mask(layer.index)[:, positions]
        values = layer.pattern.dense(layer.effective_values().detach(), layer.index)[:, positions]
        order = choose(state.signal, values, mask, fraction, self.settings)
        if agreement.world_size(self.group) > 1:
            order = agreement.share_units(order, self.group)
        moved = positions[order != torch.arange(len(order))]
        layer.perm[positions] = layer.perm[positions[order]]
        columns = torch.zeros(layer.in_features, dtype=torch.bool)
        columns[moved] = True
        entries = columns[layer.pattern.coordinates(layer.index)[1]]
        tensors = [layer.values, *slots(optimizer, f"{state.name}.values", layer.values)]
        if layer.values.grad is not None:
            tensors.append(layer.values.grad)
        for tensor in tensors:
            tensor.detach().masked_fill_(entries, 0)
        features = torch.arange(layer.in_features)
        return PermutationUpdate(
            name=state.name,
            considered=len(positions),
            moved=len(moved),
            change_rate=len(moved) / layer.in_features,
            distance=float((layer.perm != features).double().mean()),
        )
