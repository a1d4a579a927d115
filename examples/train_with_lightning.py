"""A small vision transformer learns digits with a sparse mask that moves, in Lightning.

    python -m examples.train_with_lightning [FOLDER]

It is trained twice: at one go, and cut in the middle, with new objects going on from the
checkpoint. Both end alike, bit for bit.
"""

from __future__ import annotations

import csv
import sys
import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

import padst_fx
from examples.digits_vit import data
from examples.digits_vit.model import VisionTransformer
from padst_fx.integrations.lightning import DSTCallback

EPOCHS, CUT_AFTER = 4, 2


class Digits(LightningModule):
    """The vision transformer of `examples/digits_vit`, its blocks sparse from the beginning."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.model = padst_fx.sparsify(VisionTransformer(), "diag", 0.9, include="blocks.*")

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        images, labels = batch
        loss = F.cross_entropy(self.model(images), labels)
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), 3e-3)


def train(folder: Path, epochs: int = EPOCHS, resume: Path | None = None) -> Trainer:
    """Train a new model for so many epochs, from a checkpoint if one is given."""
    digits = data.load()
    batches = DataLoader(TensorDataset(digits.train_images, digits.train_labels), 64)
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=epochs,
        accumulate_grad_batches=2,
        callbacks=[
            DSTCallback(method="rigl", delta_t=5, t_end=36),
            ModelCheckpoint(dirpath=folder, filename="{epoch}"),
        ],
        logger=CSVLogger(folder, name="logs", version=epochs),
        log_every_n_steps=6,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Digits(), batches, ckpt_path=resume)
    return trainer


def show(log: Path) -> None:
    for row in csv.DictReader(log.open()):
        if row["loss"]:
            print(f"  step {row['step']:>2}: loss {float(row['loss']):.4f}")
        elif row["sparsity/grown"]:
            exploration = float(row["sparsity/exploration"])
            print(
                f"  step {row['step']:>2}: {row['sparsity/grown']} diagonals exchanged, "
                f"{exploration:.1%} of all seen"
            )


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp())
    whole = train(folder / "whole")
    print("at one go")
    show(folder / "whole" / "logs" / f"version_{EPOCHS}" / "metrics.csv")
    train(folder / "cut", epochs=CUT_AFTER)
    rest = train(folder / "cut", resume=folder / "cut" / f"epoch={CUT_AFTER - 1}.ckpt")
    ends = (trainer.lightning_module.state_dict().values() for trainer in (whole, rest))
    same = all(torch.equal(*pair) for pair in zip(*ends, strict=True))
    print(f"cut after epoch {CUT_AFTER}, went on: every tensor the same: {same}")


if __name__ == "__main__":
    main()
