"""A training stopped anywhere goes on as if it had not been."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import resumed_training
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from resumed_training import CASES, STEPS, Training
from torch import nn

import padst_fx
from padst_fx import CheckpointError, checkpoint_file


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


# Stops within a step: all of them for some, else one, another one at each step; as an update is due
# every four steps, all of them are met at every place between two updates.
ALL_STOPS = ("rigl nm learned", "rigl_exact nm random", "mest block learned")


@pytest.mark.parametrize("case", CASES)
def test_stopped_at_every_step_and_made_anew_it_is_bit_identical(tmp_path, monkeypatch, case):
    """A relay: after every stop other objects, made anew and loaded, go on."""
    monkeypatch.setattr("os.fsync", lambda _: None)
    whole, losses, topologies = uninterrupted(case)
    path = tmp_path / "training.safetensors"
    training = Training.of(case)
    found = []
    for step in range(1, STEPS + 1):
        for done in range(3):
            loss = next(training.points(step, done))
            found += [loss] if done == 0 else []
            if done == step % 3 or case in ALL_STOPS:
                training.save(path, step, done + 1)
                training, *_ = Training.go_on(path, case)
        assert same(training.topology(), topologies[step - 1]), step
    assert found == losses
    assert same(training.model.state_dict(), whole.model.state_dict())
    assert any(not same(topologies[0], later) for later in topologies)


STOPS = [(1, 1), (4, 1), (4, 2), (4, 3), (9, 3), (16, 1), (16, 2), (29, 3)]


def test_a_new_process_goes_on_from_every_kind_of_stop_and_executes_nothing_of_the_files(tmp_path):
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
    found = json.loads(output)
    assert found["losses"] == expected
    assert found["events"] == []


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """A training stopped between scoring and update, and its file."""
    training = Training.of("rigl nm learned")
    for step in range(1, 4):
        list(training.points(step))
    next(training.points(4))
    path = tmp_path_factory.mktemp("training") / "training.safetensors"
    training.save(path, 4, 1)
    return path


def state_of(training):
    parts = (training.model, training.optimizer, training.dst, training.scheduler)
    gradients = [p.grad for p in training.model.parameters()]
    return copy.deepcopy([part.state_dict() for part in parts] + [gradients])


def equal(a, b):
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and torch.equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b


def load(training, path, **changes):
    arguments = {
        "model": training.model, "path": path, "optimizer": training.optimizer,
        "dst": training.dst, "parts": {"scheduler": training.scheduler}, **changes,
    }  # fmt: skip
    return padst_fx.load_training(**arguments)


def refused(training, path, message, error=CheckpointError, **changes):
    before = state_of(training)
    with pytest.raises(error, match=message):
        load(training, path, **changes)
    assert equal(state_of(training), before)


def test_damaged_files_are_refused_with_nothing_changed(tmp_path, file):
    training = Training.of("rigl nm learned", seed=5)
    content, path = file.read_bytes(), tmp_path / "damaged"
    for share in (0.0, 0.01, 0.3, 0.7, 0.999):
        path.write_bytes(content[: int(len(content) * share)])
        refused(training, path, "damaged")
    generator = torch.Generator().manual_seed(0)
    for position in torch.randint(len(content), (60,), generator=generator).tolist():
        flipped = bytearray(content)
        flipped[position] ^= 1 << position % 8
        path.write_bytes(bytes(flipped))
        refused(training, path, "damaged|not written by|version")
    path.write_bytes(content + b"x")
    refused(training, path, "damaged")


def test_other_kinds_of_files_are_refused(tmp_path, file):
    training = Training.of("rigl nm learned", seed=5)
    padst_fx.save(training.model, tmp_path / "model")
    refused(training, tmp_path / "model", "holds a model only: read it with padst_fx.load")
    torch.save(state_of(training), tmp_path / "pickle")
    refused(training, tmp_path / "pickle", "damaged or not a safetensors file")
    refused(training, tmp_path / "none", "no checkpoint at", FileNotFoundError)


def test_a_training_that_does_not_fit_is_refused_with_nothing_changed(file):
    training = Training.of("rigl nm learned", seed=5)
    parameters = list(training.model.parameters())
    sgd = torch.optim.SGD(parameters, 0.1)
    turned = torch.optim.AdamW(parameters[::-1], 0.1)
    fewer = torch.optim.AdamW(parameters[:-1], 0.1)
    split = torch.optim.AdamW([{"params": parameters[:2]}, {"params": parameters[2:]}], 0.1)
    for changes, message in (
        ({"dst": None}, "has a state of a DST, but none was given"),
        ({"parts": {}}, r"the parts \['scheduler'\], given are \[\]"),
        ({"parts": {"scheduler": training.scheduler, "more": sgd}}, r"they differ in \['more'\]"),
        ({"optimizer": sgd, "dst": None}, "has the state of AdamW, the optimizer is SGD"),
        ({"optimizer": turned, "dst": None}, "group 0 holds other parameters .* their order"),
        ({"optimizer": fewer, "dst": None}, r"they differ in \['4.bias'\]"),
        ({"optimizer": split, "dst": None}, "group 0 holds other parameters"),
    ):
        refused(training, file, message, **changes)
    with pytest.raises(ValueError, match="dst was made for another optimizer"):
        load(training, file, optimizer=sgd)
    for case, message in (
        ("set nm random", "differs in structure"),
        ("rigl block identity", "differs in structure"),
    ):
        refused(Training.of(case), file, message)
    dense = nn.Sequential(*(nn.Linear(16, 32), nn.ReLU(), nn.Dropout(), nn.Linear(32, 16)))
    dense.append(nn.Linear(16, 4))
    with pytest.raises(CheckpointError, match=r"0 is dense in the model .* sparsify the model"):
        padst_fx.load_training(dense, file, torch.optim.AdamW(dense.parameters()))


def test_other_methods_and_other_layers_are_refused(tmp_path, file):
    training = Training.of("rigl nm learned", seed=5)
    training.dst.close()
    training.dst = padst_fx.DST(training.model, training.optimizer, "set", delta_t=4)
    refused(training, file, "does not fit: the state is of method 'rigl', this is 'set'")
    training.dst.close()
    training.model[0].values.requires_grad_(False)
    training.dst = padst_fx.DST(training.model, training.optimizer, "rigl", delta_t=4)
    refused(training, file, r"does not fit: the state is of other layers; they differ in \['0'\]")


def test_a_part_that_fails_leaves_everything_as_it_was(tmp_path):
    class Counter:
        def __init__(self, limit):
            self.count, self.limit = 0, limit

        def state_dict(self):
            return {"count": self.count}

        def load_state_dict(self, state):
            if state["count"] > self.limit:
                raise RuntimeError("too many")
            self.count = state["count"]

    training = Training.of("rigl block identity")
    first, second = Counter(10), Counter(10)
    first.count = second.count = 7
    model, optimizer, dst = training.model, training.optimizer, training.dst
    parts = {"first": first, "second": second}
    padst_fx.save_training(model, tmp_path / "t", optimizer, dst, parts=parts)
    list(training.points(1))
    first.count, second.limit = 0, 3
    second.count = 1
    refused(training, tmp_path / "t", "too many", RuntimeError, parts=parts)
    assert (first.count, second.count) == (0, 1)


def test_the_model_alone_loads_from_a_training_file(file):
    training, *_ = Training.go_on(file, "rigl nm learned")
    dense = nn.Sequential(
        nn.Linear(16, 32), nn.ReLU(), nn.Dropout(0.1), nn.Linear(32, 16), nn.Linear(16, 4)
    )
    loaded = padst_fx.load(dense, file)
    assert same(loaded.state_dict(), training.model.state_dict())


def test_what_no_file_can_hold_is_refused_before_anything_is_written(tmp_path):
    training = Training.of("rigl block identity")
    arguments = (training.model, tmp_path / "t", training.optimizer, training.dst)
    with pytest.raises(ValueError, match=r"cannot save extra\.a\.1: it is a set"):
        padst_fx.save_training(*arguments, extra={"a": [1, {2}]})
    with pytest.raises(TypeError, match=r"must be a torch.optim.Optimizer, got int"):
        padst_fx.save_training(training.model, tmp_path / "t", 3)
    assert list(tmp_path.iterdir()) == []


def places(value, path=()):
    """The path to every value in nested JSON, that to all of it first."""
    yield path
    listed = enumerate(value) if isinstance(value, list) else ()
    for key, item in value.items() if isinstance(value, dict) else listed:
        yield from places(item, (*path, key))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=4) | st.sampled_from(["diag", "soft", ".0.x", "tensor", "AdamW"]),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(["tensor", "dict", "tuple", "name", "float"]), inner,
                      max_size=2),
    max_leaves=4,
)  # fmt: skip


@settings(max_examples=150, deadline=None, derandomize=True)
@given(data=st.data())
def test_a_forged_header_is_refused_with_nothing_changed_or_loads_a_sound_model(file, data):
    """The checksum is right: somebody else wrote it."""
    header, tensors = checkpoint_file.read(file)
    path = data.draw(st.sampled_from(list(places(header))[1:]))
    *above, key = path
    holder = header
    for step in above:
        holder = holder[step]
    if data.draw(st.booleans()) and isinstance(holder, dict):
        del holder[key]
    else:
        holder[key] = data.draw(JSON)
    header.pop("version", None)
    with tempfile.TemporaryDirectory() as folder:
        forged = Path(folder) / "forged"
        checkpoint_file.write(forged, header, tensors)
        training = Training.of("rigl nm learned", seed=5)
        before = state_of(training)
        try:
            load(training, forged)
        except CheckpointError:
            assert equal(state_of(training), before)
        for layer in (training.model[0], training.model[3]):
            assert layer.topology_fault(layer.index, layer.perm) is None
