"""DST under the Trainer of Hugging Face's transformers."""

from __future__ import annotations

import math
from typing import Any

try:
    from accelerate.utils import DistributedType
    from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState
    from transformers.trainer_callback import ExportableState
except ImportError as error:
    raise ImportError(
        "padst_fx.integrations.transformers needs transformers and accelerate: "
        f"pip install 'padst_fx[transformers]' ({error})"
    ) from error

from padst_fx.dst import DST
from padst_fx.integrations.json_state import from_json, to_json
from padst_fx.integrations.managed import (
    Settings,
    adds_parameters,
    go_on,
    start_metrics,
    update_metrics,
)

# Ways of training in which every process holds the whole model.
WHOLE_MODEL = {DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU}


class DSTCallback(TrainerCallback, ExportableState):
    """Dynamic sparse training of a `Trainer`'s sparsified model.

        trainer = Trainer(model, args, train_dataset=data)
        trainer.add_callback(DSTCallback(trainer, method="rigl", delta_t=100))

    `settings` are arguments of `padst_fx.DST`; `t_end` may be a share of the training's steps
    (0.75 by default). The `DST` itself is `dst`. It takes a step after each of the optimizer's,
    adds the penalty of soft permutations to the gradients, logs through `trainer.log` after each
    update (`layers=False`: totals only), and is saved in and restored from the
    `trainer_state.json` of every checkpoint.

    The trainer's optimizer is made now if it is not there. Raises what `padst_fx.DST` raises, and
    `ValueError` for a trainer with a `model_init`, with FSDP, DeepSpeed or `DataParallel`, with
    `restore_callback_states_from_checkpoint`, and for a learning-rate scheduler that does not know
    the parameters that `DST` adds; at the training's start for a checkpoint without a state of a
    `DST` or with one that does not fit.
    """

    def __init__(
        self, trainer: Trainer, method: str = "rigl", *, layers: bool = True, **settings: Any
    ) -> None:
        self.settings = Settings(method, **settings)
        self.trainer = trainer
        self.layers = layers
        _check(trainer)
        assert trainer.model is not None
        self._adds_parameters = adds_parameters(trainer.model, method)
        if self._adds_parameters and trainer.lr_scheduler is not None:
            raise ValueError(
                f"{type(trainer.lr_scheduler).__name__} was built before DST adds a group of "
                "parameters (DynaDiag's scores, soft permutations) to its optimizer. Let the "
                "Trainer build it: optimizers=(optimizer, None)"
            )
        if trainer.optimizer is None:
            trainer.create_optimizer()
        self._steps = _steps(trainer) if self.settings.needs_steps() else None
        self.dst = self._make(self._steps)

    def on_train_begin(
        self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        changed = self._steps is not None and self._steps != state.max_steps
        if changed or (self.dst.steps > 0 and state.global_step == 0):
            self._renew(state.max_steps)
        if state.global_step > 0:
            go_on(self.dst, _saved(state, type(self).__name__), "the checkpoint")
        else:
            self._log(start_metrics(self.dst, self.layers), control)

    def on_step_begin(
        self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        penalty = self.dst.penalty()
        if penalty.requires_grad:
            # Once per step, before the first micro-batch: gradients add up as if in the loss.
            scaler = self.trainer.accelerator.scaler
            (penalty if scaler is None else scaler.scale(penalty)).backward()

    def on_step_end(
        self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        before = self.dst.last_update
        self.dst.step()
        update = self.dst.last_update
        if update is not None and update is not before:
            self._log(update_metrics(self.dst, update, self.layers), control)

    def state(self) -> dict[str, Any]:
        """What the Trainer writes into a checkpoint's `trainer_state.json`."""
        return {"args": {}, "attributes": {"dst": to_json(self.dst.state_dict())}}

    def _renew(self, steps: int) -> None:
        """A DST that has seen nothing, for another training of the same model."""
        if self._adds_parameters:
            raise ValueError(
                "the learning-rate scheduler was built for the parameters that DST has already "
                f"added for a training of {self._steps} steps, of which it has seen "
                f"{self.dst.steps}. Make a new Trainer and a new DSTCallback for another training"
            )
        self.dst.close()
        self._steps = steps if self.settings.needs_steps() else None
        self.dst = self._make(self._steps)

    def _make(self, steps: int | None) -> DST:
        model, optimizer = self.trainer.model, self.trainer.optimizer
        assert model is not None and optimizer is not None
        return self.settings.make(model, optimizer, steps)

    def _log(self, metrics: dict[str, float], control: TrainerControl) -> None:
        """Log beside what the Trainer logs: it takes any log for the one that was due."""
        due = control.should_log
        self.trainer.log(metrics)
        control.should_log = due


def _check(trainer: Trainer) -> None:
    """Raise `ValueError` for a trainer that the callback cannot serve."""
    args, way = trainer.args, trainer.accelerator.distributed_type
    if trainer.model_init is not None:
        raise ValueError(
            "the Trainer makes its model by model_init when training starts, so there is nothing "
            "to train sparsely yet. Give it the sparsified model itself"
        )
    if args.restore_callback_states_from_checkpoint:
        raise ValueError(
            "restore_callback_states_from_checkpoint would replace DSTCallback by one that knows "
            "no Trainer. Leave it False: DSTCallback restores its own state"
        )
    if way not in WHOLE_MODEL:
        raise ValueError(
            f"DSTCallback does not train under {way.value}: it needs the whole model in every "
            "process, alone or under DistributedDataParallel"
        )
    if args.n_gpu > 1:
        raise ValueError(
            f"the Trainer would use DataParallel on {args.n_gpu} GPUs, whose replicas lose scores. "
            "Start one process per GPU (torchrun), or make one GPU visible"
        )


def _steps(trainer: Trainer) -> int | None:
    """How many optimizer steps the Trainer will take; None if its data has no length."""
    args = trainer.args
    if args.max_steps > 0:
        return args.max_steps
    try:
        batches = len(trainer.get_train_dataloader())
    except TypeError:
        return None
    per_epoch = max(1, math.ceil(batches / args.gradient_accumulation_steps))
    return math.ceil(args.num_train_epochs * per_epoch)


def _saved(state: TrainerState, name: str) -> Any:
    """The state of a DST out of `trainer_state.json`, None if there is none."""
    callbacks: Any = state.stateful_callbacks
    saved = callbacks.get(name) if isinstance(callbacks, dict) else None
    attributes = saved.get("attributes") if isinstance(saved, dict) else None
    if not isinstance(attributes, dict) or "dst" not in attributes:
        return None
    return from_json(attributes["dst"])
