"""A small GPT-2 learns the bytes of Python's own library with a sparse mask that moves.

    python -m examples.train_with_transformers [FOLDER]

It is trained twice by the Trainer of Hugging Face's transformers: at one go, and cut in the
middle, with a fresh process's objects going on from the checkpoint. Both end alike, bit for bit.
"""

from __future__ import annotations

import argparse as library
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

import padst_fx
from padst_fx.integrations.transformers import DSTCallback

STEPS, CUT_AT, LENGTH = 40, 20, 32


class StopAt(TrainerCallback):
    """Ends a training early, as a machine that is taken away would."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            control.should_training_stop = True


def text() -> list[dict[str, torch.Tensor]]:
    """The source of a standard module as pieces of equal length, one token a byte."""
    source = torch.tensor(list(Path(library.__file__).read_bytes()))
    return [{"input_ids": piece, "labels": piece} for piece in source.split(LENGTH)[:-1]]


def sparse_model() -> nn.Module:
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=256, n_positions=LENGTH, n_embd=64, n_layer=2, n_head=4, bos_token_id=0,
        eos_token_id=0,
    )
    return padst_fx.sparsify(GPT2LMHeadModel(config), "diag", 0.9, permutation="learned")


def train(folder: Path, stop_at: int = STEPS, resume: bool = False) -> tuple[nn.Module, Trainer]:
    """Train a new model till a step, from the folder's last checkpoint if asked to."""
    model = sparse_model()
    args = TrainingArguments(
        str(folder), max_steps=STEPS, per_device_train_batch_size=8, gradient_accumulation_steps=2,
        learning_rate=3e-3, logging_steps=5, save_steps=CUT_AT, report_to=[], use_cpu=True,
        disable_tqdm=True,
    )
    trainer = Trainer(model, args, train_dataset=text(), callbacks=[StopAt(stop_at)])
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(DSTCallback(trainer, method="rigl", delta_t=5))
    trainer.train(resume_from_checkpoint=resume)
    return model, trainer


def show(title: str, trainer: Trainer) -> None:
    print(title)
    for entry in trainer.state.log_history:
        if "loss" in entry:
            print(f"  step {entry['step']:2}: loss {entry['loss']:.4f}")
        elif "sparsity/grown" in entry:
            print(
                f"  step {entry['step']:2}: {entry['sparsity/grown']:3} diagonals exchanged, "
                f"{entry['sparsity/exploration']:.1%} of all seen, "
                f"{entry['sparsity/permutation_change']:.1%} of positions moved"
            )


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp())
    whole, trainer = train(folder / "whole")
    show("at one go", trainer)
    train(folder / "cut", stop_at=CUT_AT)
    rest, _ = train(folder / "cut", resume=True)
    ends = (model.state_dict().values() for model in (whole, rest))
    same = all(torch.equal(*pair) for pair in zip(*ends, strict=True))
    print(f"cut at step {CUT_AT}, went on: every tensor the same: {same}")


if __name__ == "__main__":
    main()
