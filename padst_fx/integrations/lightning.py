"""DST under the Trainer of Lightning."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
except ImportError as error:
    raise ImportError(
        "padst_fx.integrations.lightning needs lightning: "
        f"pip install 'padst_fx[lightning]' ({error})"
    ) from error

from padst_fx.dst import DST
from padst_fx.integrations.managed import (
    Settings,
    adds_parameters,
    go_on,
    start_metrics,
    update_metrics,
)

# Ways of training in which every process holds the whole model, and one that derives from them.
# By name: `pytorch_lightning`, the same library's other package, has classes of its own.
WHOLE_MODEL = {"SingleDeviceStrategy", "DDPStrategy"}
SPLIT_MODEL = {"DeepSpeedStrategy"}


class DSTCallback(Callback):
    """Dynamic sparse training of a `LightningModule` that was sparsified.

        trainer = Trainer(callbacks=[DSTCallback(method="rigl", delta_t=100)])

    `settings` are arguments of `padst_fx.DST`; `t_end` may be a share of the training's steps
    (0.75 by default). The `DST`, made when `fit` starts, is `dst`. It takes a step after each of
    the optimizer's, adds the penalty of soft permutations to the gradients, logs to every logger
    and to `trainer.callback_metrics` after each update (`layers=False`: totals only), and is saved
    in and restored from the trainer's checkpoints. In place of settings, `made` returns the `DST`
    that the module made itself: in `configure_optimizers`, so that a scheduler built there knows
    the parameters that `DST` adds.

    When `fit` starts, raises what `padst_fx.DST` raises, and `ValueError` for manual optimization,
    strategies that split the model, a scheduler that does not know the parameters that `DST` adds,
    and a checkpoint without a state of a `DST` or with one that does not fit.
    """

    def __init__(
        self,
        method: str = "rigl",
        *,
        layers: bool = True,
        made: Callable[[LightningModule], DST] | None = None,
        **settings: Any,
    ) -> None:
        self.settings = Settings(method, **settings)
        if made is not None and self.settings != Settings():
            raise ValueError("a DST that the module made itself has its own settings; give none")
        self.made = made
        self.layers = layers
        self.dst: DST | None = None
        self._saved: dict[str, Any] | None = None
        self._steps_seen = 0

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Before optimizers are restored: their states have the parameters that DST adds.
        _check(trainer, pl_module)
        saved, self._saved = self._saved, None
        self.dst = self._make(trainer, pl_module)
        if trainer.ckpt_path is not None:
            go_on(self.dst, saved, str(trainer.ckpt_path))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        dst = self._running()
        self._steps_seen = trainer.global_step
        if dst.steps == 0:
            _log(trainer, start_metrics(dst, self.layers), 0)

    def on_before_backward(
        self, trainer: Trainer, pl_module: LightningModule, loss: Tensor
    ) -> None:
        penalty = self._running().penalty()
        if penalty.requires_grad:
            # A share in each micro-batch: gradients add up as if it were in the loss.
            share = penalty / trainer.accumulate_grad_batches
            scaler = getattr(trainer.precision_plugin, "scaler", None)
            (share if scaler is None else scaler.scale(share)).backward()

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Tensor | Mapping[str, Any] | None,
        batch: Any,
        batch_idx: int,
    ) -> None:
        if trainer.global_step == self._steps_seen:
            return  # gradients are still being accumulated
        self._steps_seen = trainer.global_step
        dst = self._running()
        before = dst.last_update
        dst.step()
        if dst.last_update is not None and dst.last_update is not before:
            metrics = update_metrics(dst, dst.last_update, self.layers)
            _log(trainer, metrics, trainer.global_step - 1)

    def state_dict(self) -> dict[str, Any]:
        return {} if self.dst is None else self.dst.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._saved = state_dict

    def _make(self, trainer: Trainer, module: LightningModule) -> DST:
        if self.made is not None:
            return self.made(module)
        optimizer = trainer.optimizers[0]
        schedulers = [config.scheduler for config in trainer.lr_scheduler_configs]
        if schedulers and adds_parameters(module, self.settings.method):
            raise ValueError(
                f"{type(schedulers[0]).__name__} was built before DST adds a group of parameters "
                "(DynaDiag's scores, soft permutations) to its optimizer. Make the DST in "
                "configure_optimizers, before the scheduler, and say where it is: "
                "DSTCallback(made=lambda module: module.dst)"
            )
        if self.dst is not None:
            self.dst.close()
        share = self.settings.needs_steps()
        steps = trainer.estimated_stepping_batches if share else None
        return self.settings.make(module, optimizer, steps)

    def _running(self) -> DST:
        assert self.dst is not None
        return self.dst


def _check(trainer: Trainer, module: LightningModule) -> None:
    """Raise `ValueError` for a training that the callback cannot serve."""
    if not module.automatic_optimization:
        raise ValueError(
            "DSTCallback cannot tell the steps of manual optimization. Make a padst_fx.DST in "
            "configure_optimizers and call its step() after the optimizer's in training_step"
        )
    strategy = type(trainer.strategy)
    names = {base.__name__ for base in strategy.__mro__}
    if not names & WHOLE_MODEL or names & SPLIT_MODEL:
        raise ValueError(
            f"DSTCallback does not train under {strategy.__name__}: it needs the whole model "
            "in every process, alone or under DDPStrategy"
        )


def _log(trainer: Trainer, metrics: dict[str, float], step: int) -> None:
    for logger in trainer.loggers:
        logger.log_metrics(metrics, step=step)
    device = trainer.strategy.root_device
    tensors = {name: torch.tensor(float(value), device=device) for name, value in metrics.items()}
    trainer.callback_metrics.update(tensors)
