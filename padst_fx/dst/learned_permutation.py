"""Learned permutations: hard at every step, moved only by updates (docs/permutations.md)."""

from __future__ import annotations

from dataclasses import dataclass, field
from numbers import Real
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from padst_fx.dst import agreement
from padst_fx.dst.assignment import Gain, Wanted, choose_features
from padst_fx.dst.columns import Columns
from padst_fx.dst.curvature import Curvature
from padst_fx.dst.optimizer_state import movable
from padst_fx.dst.statistics import PermutationUpdate
from padst_fx.layers.linear import DEFAULT_POSITIONS, SparseLinear
from padst_fx.saved_fields import check_fields, check_shape
from padst_fx.sharding import whole

# Updates in a row that consider the same positions: the second sees what the first one's moves
# became.
ROUND = 2
# Further apart than a model has layers, so that no two layers draw the same order.
TURN_STRIDE = 1_000_003


@dataclass(frozen=True)
class LearnedPermutation:
    """How updates move learned permutations.

    An update looks at `positions` positions of a layer (all, where it has fewer), other ones every
    second time, and moves at most `fraction` of them, a share that follows DST's schedule.
    `shrinkage`, in (0, 1], is how far the features' second moments are drawn towards their
    diagonal: 1 takes features for uncorrelated. Raises `ValueError` for values out of range.
    """

    positions: int = DEFAULT_POSITIONS
    fraction: float = 0.5
    shrinkage: float = 0.1

    def __post_init__(self) -> None:
        whole = isinstance(self.positions, int) and not isinstance(self.positions, bool)
        if not whole or self.positions < 2:
            raise ValueError(
                "LearnedPermutation: positions must be an integer of 2 or more, "
                f"got {self.positions!r}"
            )
        for name in ("fraction", "shrinkage"):
            value = getattr(self, name)
            if not isinstance(value, Real) or not 0 < float(value) <= 1:
                raise ValueError(f"LearnedPermutation: {name} must be in (0, 1], got {value!r}")


@dataclass
class PermutationState:
    """What is kept per layer with a learned permutation: the signal collected for its next update,
    its curvature, and what the weights of the considered columns were and wanted at the last update
    (`started` and `expected`, 1-d; None where other positions were considered)."""

    name: str
    layer: SparseLinear
    curvature: Curvature = field(default_factory=Curvature)
    signal: Tensor | None = None
    started: Tensor | None = None
    expected: Tensor | None = None
    _handle: RemovableHandle | None = field(default=None, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        """A copy has no hook; its manager arms it again."""
        return {**self.__dict__, "_handle": None}

    @property
    def positions(self) -> Tensor:
        """The positions that a scoring step looks at, `[J]` int32."""
        assert self.layer.positions is not None
        return self.layer.positions

    @property
    def probe(self) -> Tensor:
        assert self.layer.permutation_probe is not None
        return self.layer.permutation_probe

    def arm(self, positions: Tensor) -> None:
        """Make the next forward of this layer look at the given positions."""
        if not torch.equal(positions.to(self.positions), self.positions):
            self.positions.copy_(positions)
            self.started = self.expected = None
        if self._handle is None:
            probe = self.layer.ask_for_signal()
            self._handle = probe.register_post_accumulate_grad_hook(self._collect)

    def disarm(self) -> None:
        """Back to plain forwards; the signal collected so far is forgotten."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None
        self.layer.ask_for_signal(False)
        self.forget()

    def forget(self) -> None:
        """Drop the signal collected so far."""
        self.probe.grad = None
        self.signal = None

    def _collect(self, probe: Tensor) -> None:
        assert probe.grad is not None
        arrived, probe.grad = probe.grad.detach(), None
        self.signal = arrived if self.signal is None else self.signal + arrived

    def columns(self) -> Columns:
        """The considered columns, as the units are now."""
        return Columns.of(self.layer, self.positions.long())

    def values(self) -> Tensor:
        """The values as the forward uses them, whole on every rank."""
        return self.layer.scaled(whole(self.layer.values))

    def observe(self, wanted: Wanted) -> None:
        """Learn the curvature from what training did since; `index` must be as it was then."""
        if self.started is None or self.expected is None:
            return
        columns = self.columns()
        now = columns.pick(wanted.change, columns.place)
        trained = columns.read(self.values()) - self.started
        self.curvature.observe(self.expected, now, trained.to(now))
        self.started = self.expected = None

    def expect(self, wanted: Wanted, order: Tensor, columns: Columns) -> None:
        """Remember the weights and what they want, of the features that `order` gives them."""
        self.started = columns.read(self.values())
        self.expected = columns.pick(wanted.change, order[columns.place])

    def state_dict(self) -> dict[str, Any]:
        return {
            "signal": self.signal,
            "started": self.started,
            "expected": self.expected,
            "curvature": self.curvature.state_dict(),
        }

    def check_state(self, state_dict: dict[str, Any]) -> None:
        """Raise `ValueError` for a damaged state."""
        place = f"{self.name}: not the state of a learned permutation"
        tensors = dict.fromkeys(("signal", "started", "expected"), (Tensor, type(None)))
        check_fields(place, state_dict, {"curvature": dict, **tensors})
        check_fields(place, state_dict["curvature"], {"product": float, "energy": float})
        check_shape(f"{self.name}: signal", state_dict["signal"], self.probe.shape)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.curvature.load_state_dict(state_dict["curvature"])
        device = self.layer.values.device
        for name in ("signal", "started", "expected"):
            tensor = state_dict[name]
            setattr(self, name, None if tensor is None else tensor.to(device))


class LearnedPermutations:
    """The learned permutations of a model; DST calls it around its own updates."""

    def __init__(
        self, layers: list[tuple[str, SparseLinear]], settings: LearnedPermutation, seed: int
    ) -> None:
        self.settings = settings
        self.seed = seed
        self.updates = 0
        self.states = [
            PermutationState(name, layer)
            for name, layer in layers
            if layer.permutation == "learned"
        ]
        for state in self.states:
            count = min(state.layer.in_features, settings.positions)
            if count != len(state.positions):
                state.layer.consider_positions(count)

    def prepare_next_step(self, scoring: bool) -> None:
        """Arm the layers if the next step's signal is needed, else disarm them."""
        for number, state in enumerate(self.states):
            if scoring:
                state.arm(self._considered(number, state))
            else:
                state.disarm()

    def _considered(self, number: int, state: PermutationState) -> Tensor:
        """The positions of this round: every one once before any comes again."""
        features, count = state.layer.in_features, len(state.positions)
        rounds_in_turn = features // count
        turn, place = divmod(self.updates // ROUND, rounds_in_turn)
        generator = torch.Generator().manual_seed(self.seed + TURN_STRIDE * turn + number)
        order = torch.randperm(features, generator=generator, device="cpu")
        return order[place * count : (place + 1) * count].sort().values

    def disarm(self) -> None:
        """Back to plain forwards in all layers."""
        for state in self.states:
            state.disarm()

    def close(self) -> None:
        """Stop managing."""
        self.disarm()
        self.states = []

    def forget(self) -> None:
        """Drop the signals collected so far."""
        for state in self.states:
            state.forget()

    def merge(self, group: dist.ProcessGroup | None) -> None:
        """Give every rank the signal of the whole batch."""
        if not self.states:
            return
        here = [state.signal is not None for state in self.states]
        reached = agreement.any_rank_each(here, group, self.states[0].probe.device)
        for state, somewhere in zip(self.states, reached, strict=True):
            if somewhere:
                state.signal = agreement.sum_over_ranks(state.signal, state.probe, group)
                # Losses are means over each rank's batch; moments are sums over tokens.
                state.signal[: 2 * state.layer.out_features] /= agreement.world_size(group)

    def not_finite(self) -> list[str]:
        """The layers whose signal has a NaN or an infinity."""
        return [
            state.name
            for state in self.states
            if state.signal is not None and not bool(torch.isfinite(state.signal).all())
        ]

    def read(self) -> list[tuple[PermutationState, Wanted]]:
        """What the signals say, before DST exchanges units; observes the curvature on the way."""
        reached = []
        for state in self.states:
            if state.signal is not None and state.layer.values.requires_grad:
                wanted = Wanted.of(state.signal, self.settings.shrinkage)
                state.observe(wanted)
                reached.append((state, wanted))
        return reached

    def update(
        self,
        reached: list[tuple[PermutationState, Wanted]],
        share: float,
        optimizer: torch.optim.Optimizer,
        group: dist.ProcessGroup | None,
    ) -> tuple[PermutationUpdate, ...]:
        """Move positions, after DST has exchanged units; `share` is the schedule's, 1 at first."""
        moves = tuple(
            self._move(state, wanted, share * self.settings.fraction, optimizer, group)
            for state, wanted in reached
        )
        self.updates += 1
        return moves

    def _move(
        self,
        state: PermutationState,
        wanted: Wanted,
        fraction: float,
        optimizer: torch.optim.Optimizer,
        group: dist.ProcessGroup | None,
    ) -> PermutationUpdate:
        layer, considered = state.layer, state.positions.long()
        columns = state.columns()
        values = columns.dense(state.values()).to(wanted.change)
        gain = Gain(wanted, values, columns.mask())
        limit = round(fraction * len(considered))
        order = choose_features(gain, state.curvature.value, limit).to(considered.device)
        if agreement.world_size(group) > 1:
            order = agreement.share_units(order, group)
        moved = int((order != torch.arange(len(order), device=order.device)).sum())
        if moved:
            self._carry_out(state, order, columns, optimizer)
        state.expect(wanted, order, columns)
        own = torch.arange(layer.in_features, device=considered.device)
        return PermutationUpdate(
            name=state.name,
            considered=len(considered),
            moved=moved,
            change_rate=moved / layer.in_features,
            distance=float((layer.perm != own).double().mean()),
        )

    @staticmethod
    def _carry_out(
        state: PermutationState,
        order: Tensor,
        columns: Columns,
        optimizer: torch.optim.Optimizer,
    ) -> None:
        """Exchange features, and weights, slots and a gradient still there with them."""
        layer, considered = state.layer, state.positions.long()
        layer.perm.index_copy_(0, considered, layer.perm[considered[order]])
        with movable(optimizer, state.name, layer) as tensors:
            columns.exchange(tensors, order)

    def state_dict(self) -> dict[str, Any]:
        """Everything but the settings and the seed."""
        layers = {state.name: state.state_dict() for state in self.states}
        return {"updates": self.updates, "layers": layers}

    def check_state(self, state_dict: dict[str, Any]) -> None:
        """Raise `ValueError` for a state of other layers, and for a damaged one."""
        place = "not a state of learned permutations"
        check_fields(place, state_dict, {"updates": int, "layers": dict})
        names = [state.name for state in self.states]
        if list(state_dict["layers"]) != names:
            other = sorted(set(names) ^ set(state_dict["layers"]), key=str)
            raise ValueError(f"other layers have learned permutations in the state: {other[:5]}")
        for state in self.states:
            state.check_state(state_dict["layers"][state.name])

    def load_counts(self, state_dict: dict[str, Any]) -> None:
        """The part that says which positions come next; before the next step is prepared."""
        self.updates = state_dict["updates"]

    def load_layers(self, state_dict: dict[str, Any]) -> None:
        """The rest; afterwards."""
        for state in self.states:
            state.load_state_dict(state_dict["layers"][state.name])
