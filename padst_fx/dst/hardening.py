"""The life of soft permutations in training: projected at every step, hardened at a few."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from padst_fx.dst import agreement
from padst_fx.dst.optimizer_state import forget, move_to_own_group
from padst_fx.dst.soft_schedule import SoftSchedule
from padst_fx.dst.statistics import SoftUpdate
from padst_fx.layers.linear import SparseLinear
from padst_fx.saved_fields import check_fields
from padst_fx.soft_permutation import nearest_permutation, permutation_penalty, project_

log = logging.getLogger(__name__)


class Hardening:
    """The soft layers of a model while a `DST` trains them.

    `events` counts the times that layers were hardened, `recompilations` how often at most that
    had a compiled model compiled anew, `put_off` the layers that could not be hardened for entries
    that were not finite.
    """

    def __init__(
        self,
        layers: Sequence[tuple[str, SparseLinear]],
        optimizer: torch.optim.Optimizer,
        schedule: SoftSchedule,
        group: dist.ProcessGroup | None,
    ) -> None:
        self.layers = [(name, layer) for name, layer in layers if layer.permutation == "soft"]
        self.optimizer = optimizer
        self.schedule = schedule
        self.group = group
        self.events = 0
        self.recompilations = 0
        self.put_off = 0
        self._held: list[nn.Parameter] = []

    @property
    def soft(self) -> list[tuple[str, SparseLinear, nn.Parameter]]:
        """Names, layers and matrices of those that are still soft."""
        return [
            (name, layer, layer.soft_perm)
            for name, layer in self.layers
            if layer.soft_perm is not None
        ]

    def start(self, model: nn.Module) -> None:
        """Train the matrices, in a group of their own; `DST` averages their gradients.

        A `DistributedDataParallel` would wait for the gradient of a hardened layer's matrix for
        ever, so one made later leaves the matrices out; one made earlier saw that they asked for
        no gradient.
        """
        if not self.layers:
            return
        names = [n for n, _ in model.named_parameters() if n.split(".")[-1] == "soft_perm"]
        if dist.is_available():
            ignored = getattr(model, "_ddp_params_and_buffers_to_ignore", [])
            DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(
                model, [*ignored, *names]
            )
        self.claim()

    def claim(self) -> None:
        """Put the present matrices, and no others, into one last group of the optimizer."""
        present = [matrix for _, _, matrix in self.soft]
        forget(self.optimizer, [m for m in self._held if not any(m is p for p in present)])
        self._held = present
        settings = {"weight_decay": 0.0}
        if (rate := self.schedule.settings.learning_rate) is not None:
            settings["lr"] = rate
        matrices = {f"{name}.soft_perm": matrix for name, _, matrix in self.soft}
        move_to_own_group(self.optimizer, matrices, **settings)
        for matrix in self._held:
            matrix.requires_grad_(True)

    def follow_model(self) -> None:
        """Have the optimizer hold the matrices that the model has by now, if it holds others."""
        present = [matrix for _, _, matrix in self.soft]
        held = self._held
        if len(present) != len(held) or any(a is not b for a, b in zip(present, held, strict=True)):
            self.claim()

    def close(self) -> None:
        """Leave the permutations as they are: they ask for no gradient any more."""
        for _, _, matrix in self.soft:
            matrix.requires_grad_(False)
            matrix.grad = None
        self.layers = []
        self._held = []

    def penalty(self, step: int) -> Tensor | None:
        """The weighted sum of the layers' penalties, each per row and column; None where none
        is soft."""
        soft = self.soft
        if not soft:
            return None
        return self.schedule.weight(step) * torch.stack([_per_line(m) for _, _, m in soft]).sum()

    def project(self) -> None:
        """Bring every matrix near the doubly stochastic ones again."""
        for matrix in (m for _, _, m in self.soft if m.requires_grad):
            project_(matrix, self.schedule.settings.sinkhorn_iterations)

    @torch.no_grad()
    def update(self, step: int, graphs: int) -> SoftUpdate | None:
        """Harden the layers whose time has come; None where nothing is soft or no update due.

        `graphs` is how many variants of the model later steps may use.
        """
        soft = self.soft
        if step % self.schedule.delta_t or not soft:
            return None
        names = [name for name, _, _ in soft]
        penalties, distances = self._measured([matrix for _, _, matrix in soft])
        chosen = self._choose(step, names, penalties)
        hardened = [(n, layer, m) for (n, layer, m), take in zip(soft, chosen, strict=True) if take]
        # All of them before any layer is changed: an assignment can fail.
        permutations = [
            self._agreed(nearest_permutation(matrix).to(layer.perm.device))
            for _, layer, matrix in hardened
        ]
        for (_, layer, _), permutation in zip(hardened, permutations, strict=True):
            layer.harden(permutation)
        forget(self.optimizer, [matrix for _, _, matrix in hardened])
        self._held = [matrix for _, _, matrix in self.soft]
        done = tuple(name for name, _, _ in hardened)
        if done:
            self.events += 1
            self.recompilations += graphs
            log.info("step %d: hardened %s; event %d", step, ", ".join(done), self.events)
        return SoftUpdate(
            dict(zip(names, penalties, strict=True)),
            dict(zip(names, distances, strict=True)),
            done,
            self.events,
            self.recompilations,
            self.put_off,
        )

    def _measured(self, matrices: list[nn.Parameter]) -> tuple[list[float], list[float]]:
        """Penalty per row and column of each matrix, and its share off the diagonal: the same on
        every rank."""
        found = [(_per_line(matrix), 1 - matrix.diagonal().mean()) for matrix in matrices]
        measured = torch.stack([torch.stack(pair).double() for pair in found], dim=1)
        if agreement.world_size(self.group) > 1:
            dist.broadcast(measured, group=self.group, group_src=0)
        penalties, distances = measured.tolist()
        return penalties, distances

    def _choose(
        self, step: int, names: Sequence[str], penalties: Sequence[float]
    ) -> list[bool]:
        """Which layers harden: all together from the last step on, before it those below the
        threshold at the steps allowed."""
        finite = [math.isfinite(penalty) for penalty in penalties]
        due = step >= self.schedule.last_step
        if due and not all(finite):
            bad = [name for name, known in zip(names, finite, strict=True) if not known]
            self.put_off += len(bad)
            log.warning(
                "step %d: the soft permutation of %s is not finite; hardening is put off by "
                "%d steps",
                step,
                ", ".join(bad),
                self.schedule.delta_t,
            )
            return [False] * len(finite)
        if due:
            return [True] * len(finite)
        if step not in self.schedule.event_steps():
            return [False] * len(finite)
        return [penalty < self.schedule.settings.threshold for penalty in penalties]

    def _agreed(self, perm: Tensor) -> Tensor:
        """The first rank's permutation, on every rank."""
        if agreement.world_size(self.group) > 1:
            dist.broadcast(perm, group=self.group, group_src=0)
        return perm

    def state_dict(self) -> dict[str, Any]:
        """The counts, and which layers are still soft."""
        return {
            "soft": [name for name, _, _ in self.soft],
            "events": self.events,
            "recompilations": self.recompilations,
            "put_off": self.put_off,
        }

    def check_fits(self, state_dict: dict[str, Any]) -> None:
        """Raise `ValueError` for a damaged state, and for one in which layers are soft that never
        can be."""
        check_fields(
            "not a state of soft permutations",
            state_dict,
            {"soft": list, "events": int, "put_off": int},
        )
        self.check_state(state_dict, [n for n, _ in self.layers if n in state_dict["soft"]])

    def check_state(self, state_dict: dict[str, Any], soft: Sequence[str]) -> None:
        """Raise `ValueError` for a state in which other layers are soft than `soft` says."""
        if state_dict["soft"] != list(soft):
            differing = sorted(set(soft) ^ set(state_dict["soft"]))
            raise ValueError(
                f"other permutations are soft in the state; they differ in {differing[:5]}. "
                "Load the model's state first"
            )

    def be_as_soft_as(self, state_dict: dict[str, Any]) -> None:
        """Have matrices in the layers that are soft in a state, and in no others."""
        for name, layer in self.layers:
            layer.be_soft(name in state_dict["soft"])
        if self.layers:
            self.claim()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from `state_dict()`; the optimizer gets the matrices that the model has now."""
        self.events = state_dict["events"]
        self.recompilations = state_dict["recompilations"]
        self.put_off = state_dict["put_off"]
        self.follow_model()


def _per_line(matrix: Tensor) -> Tensor:
    """The penalty per row and column, between 0 and 1 whatever the size."""
    return permutation_penalty(matrix) / (2 * len(matrix))
