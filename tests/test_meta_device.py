"""Models made on the meta device get a topology with their memory."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import padst_fx
from padst_fx import DST, NM, Block, Diag, SparseLinear, Unstructured

STRUCTURES = ["diag", Diag(width=4), Diag(run=2), Block(4), "nm", NM(2, 4), Unstructured()]


def build():
    return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 16), nn.Linear(16, 4))


def sparsified(structure, permutation, device):
    with torch.device(device):
        model = build()
    sparsity = 0.5 if isinstance(structure, NM) else 0.75
    return padst_fx.sparsify(model, structure, sparsity, permutation=permutation, init="random")


def to_garbage(model):
    """`to_empty`, with what is never a topology in the memory."""
    model._apply(lambda t: torch.full_like(t, True if t.dtype == torch.bool else 77, device="cpu"))


def assert_sound(model):
    layers = [m for m in model.modules() if isinstance(m, SparseLinear)]
    assert len(layers) == 2
    for layer in layers:
        assert layer.topology_fault(layer.index, layer.perm) is None
        assert layer.pattern.mask(layer.index).sum() == layer.pattern.nonzeros
        if layer.positions is not None:
            assert layer.positions.sort().values.tolist() == list(range(len(layer.positions)))


@pytest.mark.parametrize("permutation", ["identity", "random", "learned", "soft"])
@pytest.mark.parametrize("structure", STRUCTURES, ids=str)
def test_made_on_meta_then_given_memory_and_values_it_trains(structure, permutation):
    model = sparsified(structure, permutation, "meta")
    shapes = {name: (t.shape, t.dtype) for name, t in model.state_dict().items()}
    to_garbage(model)
    assert_sound(model)
    for module in model:
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    assert {name: (t.shape, t.dtype) for name, t in model.state_dict().items()} == shapes
    assert_sound(model)
    optimizer = torch.optim.SGD(model.parameters(), 1e-2)
    dst = DST(model, optimizer, "rigl", delta_t=1, t_end=10)
    x = torch.randn(4, 16)
    dense = padst_fx.densify(copy.deepcopy(model))
    torch.testing.assert_close(model(x), dense(x), rtol=1e-4, atol=1e-5)
    model(x).square().sum().backward()
    optimizer.step()
    assert dst.step()
    assert_sound(model)


@pytest.mark.parametrize("structure", STRUCTURES, ids=str)
def test_a_file_loads_into_a_model_made_on_meta(tmp_path, structure):
    torch.manual_seed(0)
    model = sparsified(structure, "random", "cpu")
    padst_fx.save(model, tmp_path / "m")
    empty = sparsified(structure, "random", "meta").to_empty(device="cpu")
    loaded = padst_fx.load(empty, tmp_path / "m")
    state = loaded.state_dict()
    assert all(torch.equal(state[name], t) for name, t in model.state_dict().items())


def test_a_moved_model_keeps_its_topology():
    model = sparsified("diag", "random", "cpu")
    before = copy.deepcopy(model.state_dict())
    model.double().float().to("cpu")
    after = model.state_dict()
    assert all(torch.equal(after[name], t) for name, t in before.items())
