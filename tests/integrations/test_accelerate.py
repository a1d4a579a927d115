"""A loop by hand under Accelerate, without anybody's Trainer."""

from __future__ import annotations

import pytest
import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.state import AcceleratorState, GradientState
from same import assert_same
from torch import nn

import padst_fx

FEATURES, ACCUMULATED, STEPS = 16, 2, 12


@pytest.fixture(autouse=True)
def fresh_accelerate():
    """Accelerate's states are its process's."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def sparse_model(permutation="learned"):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(FEATURES, 32), nn.ReLU(), nn.Linear(32, FEATURES))
    return padst_fx.sparsify(model, "diag", 0.75, include="*", permutation=permutation)


def batches():
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(8, FEATURES, generator=generator) for _ in range(STEPS * ACCUMULATED)]


class Run:
    """Model, optimizer and DST as Accelerate prepares them."""

    def __init__(self, folder, method="rigl", permutation="learned"):
        self.accelerator = Accelerator(
            cpu=True, gradient_accumulation_steps=ACCUMULATED, project_dir=folder
        )
        model = sparse_model(permutation)
        self.model, self.optimizer = self.accelerator.prepare(
            model, torch.optim.AdamW(model.parameters(), 1e-2)
        )
        self.dst = padst_fx.DST(self.model, self.optimizer, method, delta_t=2, t_end=10)
        self.accelerator.register_for_checkpointing(self.dst)

    def train(self, data):
        for x in data:
            with self.accelerator.accumulate(self.model):
                loss = nn.functional.mse_loss(self.model(x), x.flip(1)) + self.dst.penalty()
                self.accelerator.backward(loss)
                self.optimizer.step()
                self.optimizer.zero_grad()
                if self.accelerator.sync_gradients:
                    self.dst.step()

    def seen(self):
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "dst": self.dst.state_dict(),
        }


def test_hooks_are_on_the_optimizer_that_steps(tmp_path):
    run = Run(tmp_path)
    assert isinstance(run.optimizer, torch.optim.Optimizer)
    assert run.dst.optimizer is run.optimizer.optimizer


def test_it_trains_as_a_loop_by_hand(tmp_path):
    run = Run(tmp_path)
    run.train(batches())
    model = sparse_model()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    dst = padst_fx.DST(model, optimizer, delta_t=2, t_end=10)
    data = iter(batches())
    for _ in range(STEPS):
        for _ in range(ACCUMULATED):
            x = next(data)
            (nn.functional.mse_loss(model(x), x.flip(1)) / ACCUMULATED).backward()
        optimizer.step()
        optimizer.zero_grad()
        dst.step()
    assert dst.steps == STEPS
    assert dst.exploration > 0.25
    assert_same(run.model.state_dict(), model.state_dict())


@pytest.mark.parametrize(
    ("method", "permutation"), [("rigl", "learned"), ("dynadiag", "random"), ("rigl", "soft")]
)
def test_going_on_is_not_having_stopped(tmp_path, method, permutation):
    data, half = batches(), STEPS // 2 * ACCUMULATED
    whole = Run(tmp_path, method, permutation)
    whole.train(data[:half])
    whole.accelerator.save_state(str(tmp_path / "half"))
    whole.train(data[half:])
    rest = Run(tmp_path, method, permutation)
    rest.accelerator.load_state(str(tmp_path / "half"))
    rest.train(data[half:])
    assert_same(rest.seen(), whole.seen())


def test_a_step_skipped_by_the_scaler_does_not_count():
    Accelerator(cpu=True)
    model = sparse_model()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    optimizer = AcceleratedOptimizer(torch.optim.SGD(model.parameters(), 0.1), scaler=scaler)
    dst = padst_fx.DST(model, optimizer, delta_t=2)
    for factor in (1.0, float("inf"), 1.0):
        scaler.scale(model(torch.ones(4, FEATURES)).sum() * factor).backward()
        optimizer.step()
        optimizer.zero_grad()
        dst.step()
    assert dst.steps == 2
    assert dst.last_update is not None
