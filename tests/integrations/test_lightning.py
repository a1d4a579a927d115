"""Lightning's Trainer with a DSTCallback: like a loop by hand, and like one that never stopped."""

from __future__ import annotations

import csv
import warnings

import pytest
import pytorch_lightning
import torch
from integration_cases import CASES, CLIPPED, settings_of, train_by_hand
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import FSDPStrategy
from same import assert_same
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.utils.data import DataLoader, TensorDataset

import padst_fx
from padst_fx.integrations.lightning import DSTCallback

FEATURES, SAMPLES, BATCH, ACCUMULATED, EPOCHS = 16, 64, 8, 2, 4
STEPS = EPOCHS * SAMPLES // BATCH // ACCUMULATED
pytestmark = pytest.mark.filterwarnings("ignore")


class Regression(LightningModule):
    def __init__(self, case: str) -> None:
        super().__init__()
        structure, _, permutation = CASES[case]
        torch.manual_seed(0)
        self.inner = nn.Sequential(
            nn.Linear(FEATURES, 32), nn.ReLU(), nn.Linear(32, FEATURES), nn.Linear(FEATURES, 4)
        )
        padst_fx.sparsify(self.inner, structure, 0.75, permutation=permutation)
        self.losses: list[float] = []

    def training_step(self, batch, index):
        x, y = batch
        loss = nn.functional.mse_loss(self.inner(x), y)
        self.losses.append(loss.item())
        return loss

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), 1e-2)


class Scheduled(Regression):
    """Makes its DST itself, before a scheduler that has to know all parameters."""

    def __init__(self, case: str) -> None:
        super().__init__(case)
        self.case = case

    def configure_optimizers(self):
        optimizer = super().configure_optimizers()
        self.dst = padst_fx.DST(self, optimizer, t_end=12, **settings_of(self.case))
        return [optimizer], [{"scheduler": CosineAnnealingLR(optimizer, 20), "interval": "step"}]


class ScheduledTooEarly(Regression):
    def configure_optimizers(self):
        optimizer = super().configure_optimizers()
        return [optimizer], [CosineAnnealingLR(optimizer, 20)]


class ByHand(Regression):
    automatic_optimization = False


def data():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(SAMPLES, FEATURES, generator=generator)
    return DataLoader(TensorDataset(x, x[:, :4].flip(1)), BATCH)


def trainer_of(folder, *callbacks, **arguments):
    settings = dict(
        max_epochs=EPOCHS, accelerator="cpu", devices=1, accumulate_grad_batches=ACCUMULATED,
        logger=False, enable_checkpointing=False, default_root_dir=folder,
        enable_progress_bar=False, enable_model_summary=False,
    )
    return Trainer(callbacks=list(callbacks), **{**settings, **arguments})


def seen(trainer, callback):
    module = trainer.lightning_module
    return {
        "model": module.state_dict(),
        "optimizer": trainer.optimizers[0].state_dict(),
        "dst": callback.dst.state_dict(),
        "losses": module.losses[-STEPS * ACCUMULATED // 2 :],
    }


def fit(folder, case, module=Regression, resume=None, **arguments):
    """What a training of a case leaves; a checkpoint after each epoch is in the folder."""
    made = None if module is Regression else lambda module: module.dst
    callback = DSTCallback(made=made) if made else DSTCallback(**settings_of(case))
    saving = ModelCheckpoint(dirpath=folder, filename="{epoch}", save_top_k=-1)
    trainer = trainer_of(folder, callback, saving, enable_checkpointing=True, **arguments)
    # What is restored are plain tensors and numbers.
    trainer.fit(module(case), data(), ckpt_path=resume, weights_only=True if resume else None)
    return seen(trainer, callback)


@pytest.mark.parametrize(
    ("case", "module", "arguments"),
    [(case, Regression, {}) for case in CASES]
    + [("dynadiag", Scheduled, {}), ("rigl soft", Scheduled, {"gradient_clip_val": 0.1})]
    + [("rigl learned", Regression, {"precision": "bf16-mixed"})],
)
def test_going_on_is_not_having_stopped(case, module, arguments, tmp_path):
    end = fit(tmp_path, case, module, **arguments)
    assert end["dst"]["steps"] == STEPS
    middle = tmp_path / f"epoch={EPOCHS // 2 - 1}.ckpt"
    assert_same(fit(tmp_path / "rest", case, module, middle, **arguments), end)


@pytest.mark.parametrize("case", ["rigl learned", "mest block", "dynadiag", "rigl soft"])
def test_it_trains_as_a_loop_by_hand(case, tmp_path):
    callback = DSTCallback(**settings_of(case))
    trainer = trainer_of(tmp_path, callback, gradient_clip_val=CLIPPED)
    trainer.fit(Regression(case), data())
    model = Regression(case)
    optimizer = model.configure_optimizers()
    dst = padst_fx.DST(model, optimizer, t_end=12, **settings_of(case))
    train_by_hand(
        model, optimizer, dst, list(data()),
        lambda batch: nn.functional.mse_loss(model.inner(batch[0]), batch[1]), STEPS, ACCUMULATED,
    )  # fmt: skip
    found = trainer.lightning_module.state_dict()
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(found[name], tensor)
    assert dst.exploration == callback.dst.exploration
    assert dst.exploration > 0.25


def test_logs_reach_every_logger_and_the_metrics(tmp_path):
    loggers = [CSVLogger(tmp_path, name=name) for name in ("one", "two")]
    callback = DSTCallback(**settings_of("rigl learned"))
    trainer = trainer_of(tmp_path, callback, logger=loggers)
    trainer.fit(Regression("rigl learned"), data())
    for name in ("one", "two"):
        with (tmp_path / name / "version_0" / "metrics.csv").open() as file:
            rows = list(csv.DictReader(file))
        assert float(rows[0]["sparsity/inner.0/sparsity"]) == 0.75
        updates = {int(row["step"]): row for row in rows if row["sparsity/grown"]}
        assert list(updates) == [1, 3, 5, 7, 9]
        last = callback.dst.last_update
        assert float(updates[9]["sparsity/exploration"]) == callback.dst.exploration
        for moved in last.permutations:
            column = f"sparsity/{moved.name}/permutation_change"
            assert float(updates[9][column]) == moved.change_rate
    shown = trainer.callback_metrics["sparsity/exploration"].item()
    assert shown == pytest.approx(callback.dst.exploration)


def test_training_again_starts_anew(tmp_path):
    callback, module = DSTCallback(delta_t=2), Regression("rigl learned")
    for _ in range(2):
        trainer_of(tmp_path, callback, max_epochs=1).fit(module, data())
        assert callback.dst.steps == SAMPLES // BATCH // ACCUMULATED


def checkpoint_of(folder, *callbacks):
    trainer = trainer_of(folder, *callbacks, max_epochs=1)
    trainer.fit(Regression("set random"), data())
    trainer.save_checkpoint(folder / "one.ckpt")
    return folder / "one.ckpt"


def test_a_checkpoint_without_a_state_is_refused(tmp_path):
    path = checkpoint_of(tmp_path)
    trainer = trainer_of(tmp_path, DSTCallback("set", delta_t=2))
    with pytest.raises(ValueError, match=r"one\.ckpt has no state of a DST"):
        trainer.fit(Regression("set random"), data(), ckpt_path=path)


def test_a_checkpoint_of_another_method_is_refused(tmp_path):
    path = checkpoint_of(tmp_path, DSTCallback("set", delta_t=2))
    trainer = trainer_of(tmp_path, DSTCallback("rigl", delta_t=2))
    with pytest.raises(ValueError, match="does not fit: the state is of method 'set'"):
        trainer.fit(Regression("set random"), data(), ckpt_path=path)


@pytest.mark.parametrize(
    ("module", "callback", "arguments", "told"),
    [
        (ScheduledTooEarly("dynadiag"), DSTCallback("dynadiag"), {}, "Make the DST in configure_"),
        (ScheduledTooEarly("rigl soft"), DSTCallback(), {}, "Make the DST in configure_"),
        (ByHand("set random"), DSTCallback(), {"accumulate_grad_batches": 1}, "manual optim"),
        (Regression("set random"), DSTCallback("nearly"), {}, "unknown method 'nearly'"),
        (Regression("set random"), DSTCallback(), {"max_epochs": -1}, "give t_end as a number"),
    ],
)
def test_what_cannot_be_trained_is_refused(tmp_path, module, callback, arguments, told):
    with pytest.raises(ValueError, match=told):
        trainer_of(tmp_path, callback, **arguments).fit(module, data())
    assert callback.dst is None


def test_a_dense_model_is_told_to_be_sparsified(tmp_path):
    module = Regression("set random")
    padst_fx.densify(module)
    with pytest.raises(ValueError, match=r"call padst_fx\.sparsify"):
        trainer_of(tmp_path, DSTCallback()).fit(module, data())


def test_a_split_model_is_refused(tmp_path):
    trainer = trainer_of(tmp_path)
    trainer.strategy_class = FSDPStrategy
    callback = DSTCallback()
    trainer._accelerator_connector.strategy = FSDPStrategy(accelerator=trainer.accelerator)
    with pytest.raises(ValueError, match="does not train under FSDPStrategy"):
        callback.on_fit_start(trainer, Regression("set random"))


def test_the_other_package_of_the_library_is_served(tmp_path):
    class Other(pytorch_lightning.LightningModule):
        training_step = Regression.training_step
        configure_optimizers = Regression.configure_optimizers

    module, callback = Other(), DSTCallback(delta_t=2)
    module.inner, module.losses = Regression("rigl learned").inner, []
    trainer = pytorch_lightning.Trainer(
        max_epochs=1, accelerator="cpu", devices=1, callbacks=[callback], logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )
    trainer.fit(module, data())
    assert callback.dst.steps == SAMPLES // BATCH
    assert callback.dst.exploration > 0.25


def test_settings_beside_a_dst_of_the_module_are_refused():
    with pytest.raises(ValueError, match="give none"):
        DSTCallback(made=lambda module: module.dst, delta_t=3)


def test_a_training_too_short_for_updates_is_told_of(tmp_path):
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        trainer_of(tmp_path, DSTCallback(), max_epochs=1).fit(Regression("set random"), data())
    assert any("masks will never change" in str(warning.message) for warning in told)


class Written(Regression):
    """Each rank writes what it ends with."""

    def on_fit_end(self):
        end = seen(self.trainer, self.trainer.callbacks[0])
        torch.save(end, f"{self.trainer.default_root_dir}/{self.global_rank}.pt")


@pytest.mark.parametrize("case", ["rigl learned", "rigl soft"])
def test_two_processes_stay_alike_and_go_on(case, tmp_path):
    ranked = {"strategy": "ddp_fork", "devices": 2, "max_epochs": 2 * EPOCHS}
    for folder, resume in ((tmp_path / "whole", None), (tmp_path / "rest", True)):
        folder.mkdir()
        callback = DSTCallback(**settings_of(case))
        saving = ModelCheckpoint(dirpath=folder, filename="{epoch}", save_top_k=-1)
        trainer = trainer_of(folder, callback, saving, enable_checkpointing=True, **ranked)
        path = tmp_path / "whole" / f"epoch={EPOCHS - 1}.ckpt" if resume else None
        trainer.fit(Written(case), data(), ckpt_path=path)
    first, second = (torch.load(tmp_path / "whole" / f"{rank}.pt") for rank in range(2))
    assert first["dst"]["steps"] == STEPS
    for part in ("model", "optimizer", "dst"):
        assert_same(second[part], first[part])
    assert_same(torch.load(tmp_path / "rest" / "0.pt"), first)
    assert_same(torch.load(tmp_path / "rest" / "1.pt"), second)
