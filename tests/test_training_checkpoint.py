"""A training stopped anywhere goes on as if it had not been."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import resumed_training
import torch
from resumed_training import CASES, STEPS, Training


def uninterrupted(case):
    """Losses of the whole run, and the topology after every step."""
    training = Training.of(case)
    losses, topologies = [], []
    for step in range(1, STEPS + 1):
        losses += [loss for loss in training.points(step) if loss is not None]
        topologies.append(training.topology())
    return training, losses, topologies


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("case", CASES)
def test_handed_over_at_every_point_of_every_step_it_is_bit_identical(tmp_path, case):
    """Each part of each step is done by objects made anew and loaded: 90 stops."""
    whole, losses, topologies = uninterrupted(case)
    path = tmp_path / "training.safetensors"
    training = Training.of(case)
    found = []
    for step in range(1, STEPS + 1):
        for done in range(3):
            loss = next(training.points(step, done))
            found += [loss] if done == 0 else []
            training.save(path, step, done + 1)
            training, *_ = Training.go_on(path, case)
        assert same(training.topology(), topologies[step - 1]), step
    assert found == losses
    assert same(training.model.state_dict(), whole.model.state_dict())
    assert any(not same(topologies[0], later) for later in topologies)


STOPS = [(1, 1), (4, 1), (4, 2), (4, 3), (9, 3), (16, 1), (16, 2), (29, 3)]


def test_a_new_process_goes_on_from_every_kind_of_stop(tmp_path):
    files, expected = [], []
    for number, case in enumerate(("rigl diag soft", "mest block learned", "dynadiag random")):
        training, losses = Training.of(case), []
        for step in range(1, STEPS + 1):
            for done, loss in enumerate(training.points(step), 1):
                losses += [] if loss is None else [loss]
                if (step, done) in STOPS:
                    path = tmp_path / f"{number}.{step}.{done}"
                    training.save(path, step, done)
                    files.append((str(path), case, len(losses)))
        expected += [losses[count:] for _, named, count in files if named == case]
    worker = [sys.executable, str(Path(resumed_training.__file__))]
    given = json.dumps([(path, case) for path, case, _ in files])
    output = subprocess.run([*worker, given], capture_output=True, text=True, check=True).stdout
    assert json.loads(output) == expected
