"""Any order of what a user may do to a model in training, with failures: invariants after each."""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path
from pkgutil import resolve_name
from unittest import mock

import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from torch import nn

import padst_fx
from padst_fx import DST, NM, Block, CheckpointError, Diag, SoftPermutation, Unstructured
from padst_fx.dst.manager import MANAGERS

STRUCTURES = st.sampled_from(["diag", Diag(width=4), Block(4), NM(1, 4), Unstructured()])
METHODS = st.sampled_from(["set", "rigl", "rigl_exact", "mest", "dynadiag"])
PERMUTATIONS = st.sampled_from(["identity", "random", "learned", "soft"])
DTYPES = st.sampled_from([torch.float32, torch.float64])
DELTA_T = 3
# Where an update can fail, and at which call.
PLACES = [
    "padst_fx.dst.layer_state.LayerState.magnitudes",
    "padst_fx.dst.manager.choose_units",
    "padst_fx.dst.assignment.assign",
    "padst_fx.dst.hardening.nearest_permutation",
]


class Fault(Exception):
    """What the machine lets happen."""


def same(a, b):
    """Whether two nested states are equal to the bit."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


class Life(RuleBasedStateMachine):
    """A model, its optimizer and its `DST`."""

    @initialize(structure=STRUCTURES, method=METHODS, permutation=PERMUTATIONS)
    def begin(self, structure, method, permutation):
        torch.manual_seed(0)
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "training.safetensors"
        self.saved = None
        self.model = nn.Sequential(
            nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16), nn.Linear(16, 4)
        )
        self.dst = None
        self.batches = 0
        self._sparsify(structure, method, permutation)

    def teardown(self):
        if hasattr(self, "folder"):
            self.folder.cleanup()

    def _sparsify(self, structure, method, permutation):
        if method == "dynadiag" and not (structure == "diag" or isinstance(structure, Diag)):
            method = "rigl"
        sparsity = None if isinstance(structure, NM) else 0.75
        padst_fx.sparsify(self.model, structure, sparsity, permutation=permutation)
        self.optimizer = torch.optim.SGD(self.model.parameters(), 1e-3, momentum=0.9)
        soft = SoftPermutation(warmup=0.5, harden_at=9) if permutation == "soft" else None
        self.dst = DST(
            self.model, self.optimizer, method, delta_t=DELTA_T, t_end=60,
            drop_fraction=0.5, soft=soft,
        )  # fmt: skip
        self.kind = (str(structure), method, permutation)
        self.half = False
        self._note_addresses()

    def _note_addresses(self):
        self.addresses = {name: t.data_ptr() for name, t in self._tensors().items()}

    def _tensors(self):
        named = {**dict(self.model.named_parameters()), **dict(self.model.named_buffers())}
        return {name: tensor for name, tensor in named.items() if "soft_perm" not in name}

    def _layers(self):
        return [m for m in self.model.modules() if isinstance(m, padst_fx.SparseLinear)]

    def _backward(self, size, factor=1.0):
        self.batches += 1
        generator = torch.Generator().manual_seed(self.batches)
        x = torch.randn(size, 16, generator=generator).to(self.model[0].values.dtype) * factor
        (self.model(x).square().sum() + self.dst.penalty()).backward()
        self.half = True

    def _finish(self):
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.half = False
        return self.dst.step()

    def _state(self):
        gradients = [None if p.grad is None else p.grad for p in self.model.parameters()]
        return copy.deepcopy(
            [self.model.state_dict(), self.optimizer.state_dict(), self.dst.state_dict(), gradients]
        )

    @property
    def sparse(self):
        return self.dst is not None

    @precondition(lambda self: self.sparse)
    @rule(size=st.sampled_from([0, 1, 4]))
    def backward(self, size):
        self._backward(size)

    @precondition(lambda self: self.sparse)
    @rule(size=st.sampled_from([0, 1, 4]))
    def step(self, size):
        if not self.half:
            self._backward(size)
        before = self.dst.steps
        self._finish()
        assert self.dst.steps == before + 1

    @precondition(lambda self: self.sparse)
    @rule()
    def update(self):
        for _ in range(DELTA_T):
            self._backward(4)
            self._finish()
        if any(layer.values.requires_grad for layer in self._layers()):
            assert self.dst.steps >= 60 or self.dst.steps - self.dst.last_update.step < DELTA_T

    @precondition(lambda self: self.sparse)
    @rule(factor=st.sampled_from([float("nan"), float("inf")]))
    def poisoned_batch(self, factor):
        """Scores that are not finite change no mask; the gradients are thrown away."""
        topology = self._topology()
        self._backward(4, factor)
        self.optimizer.zero_grad()
        self._finish()
        if self.kind[1] not in ("set", "mest") and self.kind[2] != "soft":
            assert same(topology, self._topology())

    def _topology(self):
        return [t.clone() for layer in self._layers() for t in (layer.index, layer.perm)]

    @precondition(lambda self: self.sparse)
    @rule(data=st.data(), at=st.integers(1, 2))
    def failing_update(self, data, at):
        place = data.draw(st.sampled_from(self._places()))
        real, calls, due = resolve_name(place), [], 0

        def call(*arguments, **keywords):
            calls.append(None)
            if len(calls) == at:
                raise Fault
            return real(*arguments, **keywords)

        with mock.patch(place, call):
            # Soft permutations harden at the third update, and learned ones seldom move before it.
            for _ in range(4 * DELTA_T):
                self._backward(4)
                topology, update = self._topology(), self.dst.last_update
                try:
                    self._finish()
                except Fault:
                    assert place.endswith("assign") or same(topology, self._topology())
                    return
                if self.dst.last_update is not update:
                    due += self._passed(place)
                assert due <= len(calls) < at

    def _places(self):
        """Those that an update may come to."""
        scores, choice, assignment, hardening = PLACES
        places = [choice] if self.kind[1] == "dynadiag" else [scores, choice]
        places += [assignment] * bool(self.dst.permutations.states)
        return places + [hardening] * bool(self.dst.hardening.soft)

    def _passed(self, place):
        """How often the last update has passed a place where it can fail."""
        update = self.dst.last_update
        if place.endswith("nearest_permutation"):
            return len(update.soft.hardened) if update.soft is not None else 0
        if place.endswith("assign"):
            states = self.dst.permutations.states
            known = {state.name for state in states if state.curvature.value is not None}
            # Later the schedule may let nothing move.
            return sum(p.name in known for p in update.permutations) if update.step < 30 else 0
        return len(update.layers)

    @precondition(lambda self: self.sparse)
    @rule()
    def save(self):
        padst_fx.save_training(self.model, self.path, self.optimizer, self.dst, extra=self.half)
        self.saved = (*self.kind, self.model[0].values.dtype, self._state())

    @precondition(lambda self: self.sparse and self.saved is not None)
    @rule()
    def failing_save(self):
        content = self.path.read_bytes()
        with mock.patch("os.fsync", side_effect=Fault):
            try:
                padst_fx.save_training(self.model, self.path, self.optimizer, self.dst)
                raise AssertionError("the fault was swallowed")
            except Fault:
                pass
        assert self.path.read_bytes() == content
        assert list(self.path.parent.iterdir()) == [self.path]

    @precondition(lambda self: self.sparse and self.saved is not None)
    @rule()
    def load(self):
        *kind, state = self.saved
        before = self._state()
        arguments = (self.model, self.path, self.optimizer, self.dst)
        if kind == [*self.kind, self.model[0].values.dtype]:
            self.half = padst_fx.load_training(*arguments)
            assert same(self._state(), state)
        else:
            try:
                padst_fx.load_training(*arguments)
                raise AssertionError("a file of another model was loaded")
            except CheckpointError:
                assert same(self._state(), before)

    @precondition(lambda self: self.sparse)
    @rule()
    def densify(self):
        x = torch.randn(3, 16, dtype=self.model[0].values.dtype)
        before = self.model(x)
        self.dst.close()
        for parameter in self.model.parameters():
            parameter.requires_grad_(True)
        padst_fx.densify(self.model)
        torch.testing.assert_close(self.model(x), before, rtol=1e-4, atol=1e-5)
        self.dst = None

    @precondition(lambda self: self.sparse)
    @rule()
    def freeze(self):
        """The frozen form computes the same; the model itself trains on as if there were none."""
        before = self._state()
        model = copy.deepcopy(self.model).eval()
        x = torch.randn(3, 16, dtype=self.model[0].values.dtype)
        if any(layer.soft_perm is not None for layer in self._layers()):
            try:
                padst_fx.freeze(model, (x,))
                raise AssertionError("a soft permutation was frozen")
            except ValueError as error:
                assert "soft" in str(error)
        else:
            torch.testing.assert_close(
                padst_fx.freeze(model, (x,))(x), self.model(x), rtol=1e-4, atol=1e-4, equal_nan=True
            )
        assert same(self._state(), before)

    @precondition(lambda self: not self.sparse)
    @rule(structure=STRUCTURES, method=METHODS, permutation=PERMUTATIONS)
    def sparsify(self, structure, method, permutation):
        self._sparsify(structure, method, permutation)

    @precondition(lambda self: self.sparse)
    @rule(layer=st.integers(0, 1))
    def freeze_or_thaw(self, layer):
        values = self._layers()[layer].values
        values.requires_grad_(not values.requires_grad)

    @precondition(lambda self: self.sparse)
    @rule()
    def a_frozen_layer_is_not_touched(self):
        layer = self._layers()[0]
        layer.values.requires_grad_(False)
        layer.values.grad = None
        before = (layer.values.clone(), layer.index.clone())
        self.update()
        assert torch.equal(layer.values, before[0]) and torch.equal(layer.index, before[1])
        layer.values.requires_grad_(True)

    @precondition(lambda self: self.sparse)
    @rule()
    def deepcopy(self):
        gradients = [p.grad for p in self.model.parameters()]
        old = (self.model, self.optimizer, self.dst)
        self.model, self.optimizer, self.dst = copy.deepcopy(old)
        for parameter, gradient in zip(self.model.parameters(), gradients, strict=True):
            parameter.grad = None if gradient is None else gradient.clone()
        old[2].close()
        self._note_addresses()

    @precondition(lambda self: self.sparse)
    @rule(dtype=DTYPES)
    def to_dtype(self, dtype):
        self.model.to(dtype)
        self.optimizer.load_state_dict(self.optimizer.state_dict())  # casts its state
        self._note_addresses()

    @precondition(lambda self: self.sparse)
    @rule(training=st.booleans())
    def train_or_eval(self, training):
        self.model.train(training)
        assert all(layer.training == training for layer in self._layers())

    @invariant()
    def tensors_stay_where_they_are(self):
        if self.sparse:
            assert {name: t.data_ptr() for name, t in self._tensors().items()} == self.addresses

    @invariant()
    def topologies_are_exact(self):
        for layer in self._layers():
            assert layer.topology_fault(layer.index, layer.perm) is None
            mask = layer.pattern.mask(layer.index)
            assert mask.sum() == layer.pattern.nonzeros
            outside = layer.pattern.dense(layer.values.detach(), layer.index)[~mask]
            assert (outside == 0).all()

    @invariant()
    def slots_fit(self):
        for layer in self._layers():
            slot = self.optimizer.state.get(layer.values, {}).get("momentum_buffer")
            assert slot is None or slot.shape == layer.values.shape

    @invariant()
    def it_computes_what_its_dense_form_does(self):
        if self.sparse:
            dense = padst_fx.densify(copy.deepcopy(self.model))
            x = torch.linspace(-1, 1, 32, dtype=self.model[0].values.dtype).view(2, 16)
            torch.testing.assert_close(
                self.model(x), dense(x), rtol=1e-4, atol=1e-4, equal_nan=True
            )

    @invariant()
    def each_layer_has_one_manager(self):
        for layer in self._layers():
            assert MANAGERS[layer]() is self.dst


Life.TestCase.settings = settings(
    max_examples=60,
    stateful_step_count=15,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
TestLife = Life.TestCase


@pytest.mark.parametrize("place", PLACES)
def test_updates_come_to_every_place_where_the_machine_lets_them_fail(place):
    machine = Life()
    permutation = "soft" if place.endswith("nearest_permutation") else "learned"
    machine.begin(structure="diag", method="rigl", permutation=permutation)
    with mock.patch(place, side_effect=Fault), pytest.raises(Fault):
        for _ in range(10):
            machine.update()
    machine.teardown()
