"""A small training that can stop anywhere; as a program it goes on from many files.

    python resumed_training.py '[["FILE", "CASE"], ...]'   # prints the losses of the rest of each
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import padst_fx
from padst_fx import DST, NM, Block, Diag, SoftPermutation, Unstructured

STEPS = 30
OPTIMIZERS = {
    "adamw": lambda p: torch.optim.AdamW(p, 1e-2),
    "momentum": lambda p: torch.optim.SGD(p, 1e-2, momentum=0.9),
}
CASES = {
    "rigl diag random": ("diag", "rigl", "random", "adamw"),
    "rigl wide diag learned": (Diag(width=4), "rigl", "learned", "momentum"),
    "rigl block identity": (Block(4), "rigl", "identity", "adamw"),
    "rigl nm learned": (NM(2, 4), "rigl", "learned", "adamw"),
    "rigl unstructured": (Unstructured(), "rigl", "identity", "momentum"),
    "rigl_exact nm random": (NM(2, 4), "rigl_exact", "random", "momentum"),
    "rigl_exact block learned": (Block(4), "rigl_exact", "learned", "adamw"),
    "set nm random": ("nm", "set", "random", "adamw"),
    "set block learned": (Block(4), "set", "learned", "adamw"),
    "mest block learned": (Block(4), "mest", "learned", "adamw"),
    "mest diag in runs": (Diag(run=2), "mest", "identity", "momentum"),
    "dynadiag random": ("diag", "dynadiag", "random", "adamw"),
    "rigl diag soft": ("diag", "rigl", "soft", "adamw"),
    "set nm soft": (NM(2, 4), "set", "soft", "momentum"),
}


@dataclass
class Training:
    """Everything that a training is made of, built anew from its case."""

    case: str
    model: nn.Module
    optimizer: torch.optim.Optimizer
    dst: DST
    scheduler: Any

    @classmethod
    def of(cls, case: str, seed: int = 0) -> Training:
        structure, method, permutation, optimizer = CASES[case]
        torch.manual_seed(seed)
        model = nn.Sequential(
            nn.Linear(16, 32), nn.ReLU(), nn.Dropout(0.1), nn.Linear(32, 16), nn.Linear(16, 4)
        )
        sparsity = 0.5 if isinstance(structure, NM) else 0.75
        padst_fx.sparsify(model, structure, sparsity, permutation=permutation)
        held = OPTIMIZERS[optimizer](model.parameters())
        soft = SoftPermutation(warmup=0.5, harden_at=16) if permutation == "soft" else None
        dst = DST(model, held, method, delta_t=4, t_end=26, drop_fraction=0.5, soft=soft)
        scheduler = torch.optim.lr_scheduler.OneCycleLR(held, 2e-2, total_steps=2 * STEPS)
        return cls(case, model, held, dst, scheduler)

    def points(self, step: int, done: int = 0) -> Iterator[float | None]:
        """One step, which may stop wherever it yields: the loss first, then None.

        The first `done` parts of it are left out: they were done before the training stopped.
        """
        if done < 1:
            x, y = torch.randn(8, 16), torch.randn(8, 4)
            loss = nn.functional.mse_loss(self.model(x), y) + self.dst.penalty()
            loss.backward()
            yield loss.item()
        if done < 2:
            self.optimizer.step()
            self.scheduler.step()
            yield None
        self.dst.step()
        self.optimizer.zero_grad()
        yield None

    def save(self, path: Path, step: int, done: int) -> None:
        extra = {"step": step, "done": done, "random": torch.get_rng_state(), "case": self.case}
        padst_fx.save_training(
            self.model, path, self.optimizer, self.dst,
            parts={"scheduler": self.scheduler}, extra=extra,
        )  # fmt: skip

    @classmethod
    def go_on(cls, path: Path, case: str) -> tuple[Training, int, int]:
        """A training made anew, with other random weights, where the saved one stopped."""
        training = cls.of(case, seed=99)
        extra = padst_fx.load_training(
            training.model, path, training.optimizer, training.dst,
            parts={"scheduler": training.scheduler},
        )  # fmt: skip
        torch.set_rng_state(extra["random"])
        return training, extra["step"], extra["done"]

    def topology(self) -> dict[str, Tensor]:
        state = self.model.state_dict()
        return {n: t.clone() for n, t in state.items() if n.split(".")[-1] in ("index", "perm")}


def rest(path: Path, case: str) -> list[float]:
    """The losses of all steps that were not finished."""
    training, first, done = Training.go_on(path, case)
    losses = []
    for step in range(first, STEPS + 1):
        points = list(training.points(step, done if step == first else 0))
        losses += [loss for loss in points if loss is not None]
    return losses


# Python's audit events of code that is looked up, loaded or started.
EXECUTION = ("pickle", "marshal", "exec", "compile", "import", "subprocess", "os.system")


def main() -> None:
    given = json.loads(sys.argv[1])
    losses = [rest(Path(path), case) for path, case in given]
    events: list[str] = []
    sys.addaudithook(lambda name, _: events.append(name) if name.startswith(EXECUTION) else None)
    for path, case in given:
        Training.go_on(Path(path), case)
    print(json.dumps({"losses": losses, "events": events}))


if __name__ == "__main__":
    main()
