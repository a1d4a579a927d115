"""`DST`: changes masks between steps, in place, so that compiled steps stay compiled."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from padst_fx.dst import agreement
from padst_fx.dst.averaged_models import AveragedModels
from padst_fx.dst.gradient_average import GradientAverage
from padst_fx.dst.hardening import Hardening
from padst_fx.dst.layer_state import LayerState
from padst_fx.dst.learned_permutation import LearnedPermutation, LearnedPermutations
from padst_fx.dst.methods import METHODS
from padst_fx.dst.optimizer_state import base_optimizer, check_holds, movable, slots
from padst_fx.dst.schedule import SCHEDULES
from padst_fx.dst.soft_schedule import SoftPermutation, SoftSchedule
from padst_fx.dst.statistics import LayerUpdate, SoftUpdate, Update
from padst_fx.dst.update import Choice, choose_units
from padst_fx.layers.linear import SparseLinear
from padst_fx.saved_fields import check_fields, check_generator
from padst_fx.sharding import check_sharding, sharded_modules

log = logging.getLogger(__name__)

# More than a loss scaler skips in a row.
TOO_MANY_SKIPPED = 100

# The fields of a saved state.
STATE: dict[str, type] = {
    "method": str,
    "steps": int,
    "put_off": int,
    "pending": bool,
    "optimizer_stepped": bool,
    "generator": Tensor,
    "hardening": dict,
    "layers": dict,
    "permutations": dict,
}
# Drop scores [groups, active], candidates' ids and their growth scores [groups, C].
Scores = tuple[Tensor, Tensor, Tensor]


# Which manager, if it still lives, has a layer.
MANAGERS: weakref.WeakKeyDictionary[SparseLinear, weakref.ref[DST]] = (
    weakref.WeakKeyDictionary()
)


class DST:
    """Dynamic sparse training of a sparsified model.

    Call `step()` after `optimizer.step()` at every step; every `delta_t` steps before `t_end`
    it drops the weakest units of every layer, grows as many, and moves learned permutations.
    `method` is "set", "rigl", "rigl_exact", "mest" or "dynadiag" (for `Diag` only); `schedule`
    ("cosine", "linear", "constant") lowers `drop_fraction`, the share of active units exchanged.
    `callback` is called with an `Update` after each one. `seed` is for random growth and for which
    positions of learned permutations an update looks at; `learned` has their settings. Steps that
    the optimizer skips (as `torch.amp.GradScaler` does on overflow) do not count. "dynadiag" gives
    its scores a parameter group of their own in the optimizer, so build learning-rate schedulers
    afterwards; so do soft permutations, for which `soft` has the settings: they are projected after
    every optimizer step, cost what `penalty()` says, and are hardened by a few of the updates.

    Raises `ValueError` for unknown names (listing the valid ones) and values out of range, for
    a model without trainable sparse layers, for an optimizer that does not hold them, and for
    layers that another DST has (see `close`).
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        method: str = "rigl",
        delta_t: int = 100,
        t_end: int = 75_000,
        drop_fraction: float = 0.3,
        schedule: str = "cosine",
        seed: int = 0,
        callback: Callable[[Update], None] | None = None,
        process_group: dist.ProcessGroup | None = None,
        learned: LearnedPermutation | None = None,
        soft: SoftPermutation | None = None,
    ) -> None:
        _check_choice("method", method, METHODS)
        _check_choice("schedule", schedule, SCHEDULES)
        _check_numbers(delta_t, t_end, drop_fraction)
        layers = trainable_layers(model)
        self.optimizer = base_optimizer(optimizer)
        check_holds(self.optimizer, layers)
        check_sharding(model, layers)
        self.method_name = method
        self.method = METHODS[method]()
        self.delta_t = delta_t
        self.t_end = t_end
        self.drop_fraction = drop_fraction
        self.schedule = SCHEDULES[schedule]
        self.callback = callback
        self.process_group = process_group
        self.generator = torch.Generator().manual_seed(seed)
        self.steps = 0
        self.put_off = 0
        self.last_update: Update | None = None
        self._pending = False
        self._optimizer_stepped = False
        self._skipped = 0
        self._listening = True
        refuse_managed(layers)
        softness = SoftSchedule(soft or SoftPermutation(), delta_t, t_end)
        self.hardening = Hardening(layers, self.optimizer, softness, process_group)
        if soft is not None and not self.hardening.layers:
            raise ValueError("settings for soft permutations, but no layer has one")
        self.averaging = GradientAverage(process_group)
        self.method.prepare(layers, self.optimizer)
        self.hardening.start(model)
        self.states = [
            LayerState.of(name, layer, self.method.scorer(layer.pattern)) for name, layer in layers
        ]
        self._sharded_modules = sharded_modules(model)
        self.permutations = LearnedPermutations(layers, learned or LearnedPermutation(), seed)
        self.averaged = AveragedModels()
        self._attach()

    def _attach(self) -> None:
        """Listen to the optimizer, claim the layers, arm them if the next step needs it."""
        # Weak, so that a manager nobody holds any more ends, whatever the optimizer's life.
        this = weakref.ref(self)

        # Not for Dynamo: a compiled `optimizer.step` would guard on the step count.
        @torch.compiler.disable
        def after(optimizer: torch.optim.Optimizer, *_: Any) -> None:
            if (manager := this()) is not None and manager._listening:
                manager._after_optimizer_step()

        def follow(optimizer: torch.optim.Optimizer, *_: Any) -> None:
            if (manager := this()) is not None and optimizer is manager.optimizer:
                manager.hardening.follow_model()

        self.optimizer.register_step_post_hook(after)
        # A model may have been loaded before its optimizer, with other permutations soft.
        self.optimizer.register_state_dict_pre_hook(follow)
        self.optimizer.register_load_state_dict_pre_hook(follow)
        for state in self.states:
            MANAGERS[state.layer] = this
        self._prepare_next_step()

    def __setstate__(self, state: dict[str, Any]) -> None:
        """A copy listens to the copied optimizer: hooks do not survive copying."""
        self.__dict__.update(state)
        self._attach()

    def close(self) -> None:
        """Stop managing: plain steps from now on, and another DST may take over."""
        for state in self.states:
            state.disarm()
            MANAGERS.pop(state.layer, None)
        self.permutations.close()
        self.averaging.stop()
        self.averaged.clear()
        self.states = []
        self.hardening.close()

    def step(self) -> bool:
        """Count a step and update if it is due; True when the topology changed.

        Does nothing but forget the scores if the optimizer has not stepped since the last call.
        Where an error comes from scoring or from choosing units, nothing has changed and the
        update is due again at the next step; one from a later part leaves every layer as it was
        before its own change or after it.
        """
        if not self._optimizer_stepped:
            self._skip()
            return False
        self._skipped = 0
        if self.steps == 0 or self._due(self.steps + 1):
            self._shard()
        if self.steps == 0:
            self._first_checks()
        self._optimizer_stepped = False
        self.steps += 1
        self._pending = self._due(self.steps)
        try:
            return self._do_what_is_due()
        except BaseException:
            self._end_scoring()
            self.averaged.align()
            raise
        finally:
            self._prepare_next_step()

    def _skip(self) -> None:
        """Forget the scores of a step that the optimizer has not taken."""
        for state in self.states:
            state.forget()
        self.permutations.forget()
        self._skipped += 1
        if self._skipped == TOO_MANY_SKIPPED:
            log.warning(
                "%d calls of DST.step without a step of the optimizer between them: nothing is "
                "counted or updated. A CUDA graph replayed in place of optimizer.step() runs no "
                "hooks: call optimizer.step() itself, compiled if you like",
                self._skipped,
            )

    def _do_what_is_due(self) -> bool:
        soft = self.hardening.update(self.steps, self._graphs_from_now_on())
        changed = soft is not None and bool(soft.hardened)
        if self._pending:
            changed |= self._update(soft)
        elif soft is not None:
            self._finish(Update(self.steps, 0.0, (), (), soft=soft))
        return changed

    def keep_aligned(self, averaged: nn.Module) -> None:
        """Give an average of the model (EMA, SWA) the model's masks, now and in every update.

        `averaged` is a `torch.optim.swa_utils.AveragedModel` of the model, or any other copy of it
        whose parameters an averaging overwrites. Weights that stay keep their average, grown ones
        start at zero as they do in the model; permutations, hardening and DynaDiag's scores go
        along. Without it a mean would mix the weights of different units. Raises `ValueError`, with
        nothing changed, for what is no copy of the model, for averaged buffers
        (`use_buffers=True`) and for sharded models.
        """
        self.averaged.add([(state.name, state.layer) for state in self.states], averaged)

    def penalty(self) -> Tensor:
        """What soft permutations add to the loss; zero where none is soft."""
        penalty = self.hardening.penalty(self.steps)
        if penalty is None:
            return torch.zeros((), device=self.states[0].layer.values.device)
        return penalty

    @property
    def exploration(self) -> float:
        """The share of units ever active, over all layers."""
        total = sum(state.exploration.total for state in self.states)
        return sum(s.exploration.rate * s.exploration.total for s in self.states) / total

    def state_dict(self) -> dict[str, Any]:
        """What is needed to go on as if never stopped, beside the model's and the optimizer's
        state and the arguments this was made with."""
        return {
            "method": self.method_name,
            "steps": self.steps,
            "put_off": self.put_off,
            "pending": self._pending,
            "optimizer_stepped": self._optimizer_stepped,
            "generator": self.generator.get_state(),
            "hardening": self.hardening.state_dict(),
            "layers": {
                state.name: {
                    "pattern": repr(state.layer.pattern),
                    "explored": torch.from_numpy(state.exploration.bits.copy()),
                    "growth": state.growth,
                    "gradient_norms": state.gradient_norms,
                }
                for state in self.states
            },
            "permutations": self.permutations.state_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from `state_dict()`. Raises `ValueError`, with nothing changed, for something
        else, another method's state, or a state of other layers or patterns."""
        self.check_state_dict(state_dict, [name for name, _, _ in self.hardening.soft])
        self.steps = state_dict["steps"]
        self.put_off = state_dict["put_off"]
        self._pending = state_dict["pending"]
        self._optimizer_stepped = state_dict["optimizer_stepped"]
        self.generator.set_state(state_dict["generator"])
        self.hardening.load_state_dict(state_dict["hardening"])
        self.permutations.load_counts(state_dict["permutations"])
        self._prepare_next_step()
        self.permutations.load_layers(state_dict["permutations"])
        for state in self.states:
            saved = state_dict["layers"][state.name]
            state.exploration.bits[:] = saved["explored"].numpy()
            device = state.layer.values.device
            for field in ("growth", "gradient_norms"):
                scores = saved[field]
                setattr(state, field, None if scores is None else scores.to(device))

    def check_state_dict(self, state_dict: dict[str, Any], soft: Sequence[str]) -> None:
        """Raise the `ValueError` of `load_state_dict`; changes nothing.

        `soft` names the layers whose permutations will be soft when the state is loaded.
        """
        self.check_fits(state_dict)
        self.hardening.check_state(state_dict["hardening"], soft)

    def check_fits(self, state_dict: dict[str, Any]) -> None:
        """As `check_state_dict`, whichever permutations are still soft."""
        check_fields("not a state of DST", state_dict, STATE)
        if state_dict["method"] != self.method_name:
            raise ValueError(
                f"the state is of method {state_dict['method']!r}, this is {self.method_name!r}"
            )
        check_generator(state_dict["generator"])
        names = [state.name for state in self.states]
        if list(state_dict["layers"]) != names:
            other = sorted(set(names) ^ set(state_dict["layers"]), key=str)
            raise ValueError(f"the state is of other layers; they differ in {other[:5]}")
        for state in self.states:
            state.check_state(state_dict["layers"][state.name])
        self.hardening.check_fits(state_dict["hardening"])
        self.permutations.check_state(state_dict["permutations"])

    def check_alike(self) -> None:
        """Raise `RuntimeError`, on every rank, if units or permutations differ between ranks."""
        self._check_alike_at(self.steps)

    def _check_alike_at(self, step: int) -> None:
        layers = [(state.name, state.layer) for state in self.states]
        agreement.check_alike(layers, step, self.process_group)

    def collected(self) -> list[str]:
        """The layers that hold scores or signals of a backward pass that no update has used."""
        held = [s.name for s in self.states if s.growth is not None or s.gradient_norms is not None]
        return held + [s.name for s in self.permutations.states if s.signal is not None]

    @contextmanager
    def unheard(self) -> Iterator[None]:
        """Optimizer steps in here do not count: they only make the optimizer's state be there."""
        self._listening = False
        try:
            yield
        finally:
            self._listening = True

    def _graphs_from_now_on(self) -> int:
        """How many variants of the model later steps may use: the plain one, and the scoring one
        as long as there are updates (one of the last may be put off)."""
        scores = self.method.needs_growth or bool(self.permutations.states)
        return 2 if scores and self.steps < self.t_end else 1

    def _due(self, step: int) -> bool:
        return self._pending or (step % self.delta_t == 0 and step < self.t_end)

    def _prepare_next_step(self) -> None:
        """Arm the layers if the next step's scores are needed, else disarm them."""
        due = self._due(self.steps + 1)
        scoring = self.method.needs_growth and due
        self.permutations.prepare_next_step(due)
        self.averaging.watch(self._added_parameters())
        for state in self.states:
            self.method.begin_step(state.layer, self.steps / self.t_end)
            if scoring:
                state.arm()
            else:
                state.disarm()

    def _added_parameters(self) -> list[nn.Parameter]:
        """What DST has given the layers and is trained."""
        added = [p for state in self.states for p in self.method.added_parameters(state.layer)]
        added += [matrix for _, _, matrix in self.hardening.soft]
        return [parameter for parameter in added if parameter.requires_grad]

    def _after_optimizer_step(self) -> None:
        # GradScaler lets fused optimizers skip inside `step`, and unscale the gradients there.
        found_inf = getattr(self.optimizer, "found_inf", None)
        if found_inf is not None and bool(found_inf):
            return
        self._optimizer_stepped = True
        self.hardening.project()
        if self.method.needs_gradient and self._due(self.steps + 1):
            self._shard()
            for state in self.states:
                state.capture_gradient()

    def _first_checks(self) -> None:
        check_holds(self.optimizer, [(state.name, state.layer) for state in self.states])
        self._check_alike_at(self.steps + 1)
        for state in self.states:
            slots(self.optimizer, f"{state.name}.values", state.layer.values)

    def _reduce_scores(self) -> None:
        """Give every rank the scores of all, after a look at whether they are still alike."""
        group = self.process_group
        if agreement.world_size(group) == 1:
            return
        self.check_alike()
        if self.method.needs_growth:
            agreement.merge_growth(self.states, group)
        self.permutations.merge(group)

    def _shard(self) -> None:
        """Have FSDP2's parameters in place of the unsharded ones that a forward has left."""
        for module in self._sharded_modules:
            module.reshard()

    @torch.no_grad()
    def _update(self, soft: SoftUpdate | None) -> bool:
        self._reduce_scores()
        reached = [state for state in self.states if self._has_scores(state)]
        fraction = self.schedule(self.steps, self.t_end, self.drop_fraction)
        scored = [(state, self._scores(state)) for state in reached]
        if self._put_off(scored):
            if soft is not None:
                self._finish(Update(self.steps, 0.0, (), (), soft=soft))
            return False
        permuted = self.permutations.read()
        choices = [self._choose(state, scores, fraction) for state, scores in scored]
        self._pending = False
        layers = [
            self._apply(state, choice) for state, choice in zip(reached, choices, strict=True)
        ]
        missed = tuple(s.name for s in self.states if not any(s is r for r in reached))
        if not reached:
            log.warning(
                "step %d: no layer's scores arrived, no mask changes: does a backward reach any?",
                self.steps,
            )
        share = self.schedule(self.steps, self.t_end, 1.0)
        permutations = self.permutations.update(permuted, share, self.optimizer, self.process_group)
        update = Update(self.steps, fraction, tuple(layers), missed, permutations, soft)
        self._finish(update)
        return update.grown > 0 or update.moved > 0

    def _has_scores(self, state: LayerState) -> bool:
        """Whether a layer takes part in an update: it is trained and was reached."""
        return state.layer.values.requires_grad and not (
            (self.method.needs_growth and state.growth is None)
            or (self.method.needs_gradient and state.gradient_norms is None)
        )

    def _scores(self, state: LayerState) -> Scores:
        growth, candidates = self.method.growth_scores(state, self.generator)
        return self.method.drop_scores(state), candidates, growth

    def _put_off(self, scored: list[tuple[LayerState, Scores]]) -> bool:
        """Whether scores are not finite on any rank; then the next step tries again."""
        bad = [
            state.name
            for state, (drop, _, growth) in scored
            if not (torch.isfinite(drop).all() and torch.isfinite(growth).all())
        ]
        bad += self.permutations.not_finite()
        device = self.states[0].layer.values.device
        if not agreement.any_rank(bool(bad), self.process_group, device):
            return False
        self.put_off += 1
        self._end_scoring()
        log.warning(
            "step %d: non-finite scores in %s; the update is put off to the next step",
            self.steps,
            ", ".join(bad[:3]) or "another rank",
        )
        return True

    def _choose(self, state: LayerState, scores: Scores, fraction: float) -> Choice:
        drop, candidates, growth = scores
        units = state.units()
        count = round(fraction * units.numel())
        return choose_units(units, drop, candidates, growth, count)

    def _apply(self, state: LayerState, choice: Choice) -> LayerUpdate:
        layer, old, new = state.layer, state.units(), choice.units
        if agreement.world_size(self.process_group) > 1:
            new = agreement.share_units(new, self.process_group)
        index = layer.pattern.index_from_units(new)
        with movable(self.optimizer, state.name, layer) as tensors:
            layer.pattern.rearrange(tensors, old, new)
        layer.index.copy_(index)
        self.method.after_update(state, self.optimizer, old, new)
        state.exploration.add(new)
        return LayerUpdate(
            name=state.name,
            dropped=choice.dropped,
            grown=choice.grown,
            drop_range=choice.drop_range,
            growth_range=choice.growth_range,
            exploration=state.exploration.rate,
        )

    def _end_scoring(self) -> None:
        """Plain forwards from now on, and no scores."""
        for state in self.states:
            state.disarm()
        self.permutations.disarm()

    def _finish(self, update: Update) -> None:
        self._end_scoring()
        self.averaged.align()
        self.last_update = update
        log.info(
            "step %d: %d units dropped and grown in %d layers",
            update.step,
            update.grown,
            len(update.layers),
        )
        if self.callback is not None:
            self.callback(update)


def unwrapped(model: nn.Module) -> nn.Module:
    """The model in `DistributedDataParallel`, so that names do not depend on the wrapper."""
    return model.module if isinstance(model, DistributedDataParallel) else model


def trainable_layers(model: nn.Module) -> list[tuple[str, SparseLinear]]:
    """The sparse layers whose values are trained, or a `ValueError` that says why none is."""
    modules = unwrapped(model).named_modules()
    layers = [(name, module) for name, module in modules if isinstance(module, SparseLinear)]
    if not layers:
        raise ValueError("the model has no SparseLinear; call padst_fx.sparsify(model, ...) first")
    trained = [(name, layer) for name, layer in layers if layer.values.requires_grad]
    if not trained:
        raise ValueError(f"all {len(layers)} sparse layers are frozen (requires_grad is False)")
    return trained


def refuse_managed(layers: list[tuple[str, SparseLinear]]) -> None:
    """Raise `ValueError` if a living DST has one of the layers already."""
    for name, layer in layers:
        reference = MANAGERS.get(layer)
        if reference is not None and reference() is not None:
            raise ValueError(f"{name} has a DST already; call its close() first")


def _check_choice(argument: str, value: str, valid: dict[str, Any]) -> None:
    if value not in valid:
        raise ValueError(f"unknown {argument} {value!r}; valid: {', '.join(map(repr, valid))}")


def _check_numbers(delta_t: int, t_end: int, drop_fraction: float) -> None:
    if not isinstance(delta_t, int) or delta_t < 1:
        raise ValueError(f"delta_t must be a positive number of steps, got {delta_t!r}")
    if not isinstance(t_end, int) or t_end < 1:
        raise ValueError(f"t_end must be a positive number of steps, got {t_end!r}")
    if not 0 < drop_fraction <= 1:
        raise ValueError(f"drop_fraction must be in (0, 1], got {drop_fraction!r}")
