"""A model that moves to another device after `sparsify`, trains there, and comes back."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import padst_fx

GPU = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
# Compiled models on the CPU have tests of their own.
WAYS = [
    ("cpu", False),
    pytest.param("cuda", False, marks=GPU),
    pytest.param("cuda", True, marks=GPU),
]
STEPS = 12
STRUCTURES = [
    padst_fx.Diag(),
    padst_fx.Diag(width=16),
    padst_fx.Block(16),
    padst_fx.NM(1, 4),
    padst_fx.NM(1, 4, tile=16),
]


def sparse_model(structure):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 128), nn.GELU(), nn.Linear(128, 32))
    sparsity = None if isinstance(structure, padst_fx.NM) else 0.75
    return padst_fx.sparsify(model, structure, sparsity, permutation="learned", include=["0", "2"])


def losses(model, device, compiled):
    """Of a training with updates of masks and permutations."""
    run = torch.compile(model, backend="padst", fullgraph=True) if compiled else model
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    dst = padst_fx.DST(model, optimizer, "rigl", delta_t=3, t_end=100)
    generator, found = torch.Generator().manual_seed(0), []
    x = torch.randn(96, 64, generator=generator)
    y = x @ torch.randn(64, 32, generator=generator)
    for _ in range(STEPS):
        loss = F.mse_loss(run(x.to(device)), y.to(device))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        dst.step()
        found.append(loss.item())
    dst.close()
    return found


@pytest.mark.parametrize(("device", "compiled"), WAYS)
@pytest.mark.parametrize("structure", STRUCTURES, ids=str)
def test_a_moved_model_trains_as_on_the_cpu_and_comes_back(structure, device, compiled):
    model, other = sparse_model(structure).to(device), sparse_model(structure)
    assert all(tensor.device.type == device for tensor in model.state_dict().values())
    found, expected = losses(model, device, compiled), losses(other, "cpu", compiled=False)
    assert found == pytest.approx(expected, rel=1e-2)
    assert expected[-1] < expected[0]
    x = torch.randn(5, 64)
    with torch.no_grad():
        there = model(x.to(device)).cpu()
        torch.testing.assert_close(model.cpu()(x), there, rtol=1e-3, atol=1e-3)
