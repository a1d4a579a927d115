"""Memory of a sparsified ViT-B/16, and what a plain training step allocates."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import padst_fx
from padst_fx import NM, Block, Diag, SparseLinear

STRUCTURES = ["diag", Diag(width=16), Block(16), "nm", NM(tile=16)]


def vit_b16() -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    return ViTForImageClassification(ViTConfig(num_labels=10))


@pytest.mark.parametrize("structure", STRUCTURES, ids=str)
def test_parameters_gradients_and_adamw_state_of_vit_b16(structure):
    """At most 0.12 of dense, indices included; sizes only, so nothing is computed."""
    with torch.device("meta"):
        model = padst_fx.sparsify(vit_b16(), structure, 0.9, permutation="random")
    layers = [module for module in model.modules() if isinstance(module, SparseLinear)]
    assert len(layers) == 72
    stored = dense = 0
    for layer in layers:
        bias = layer.out_features
        indices = sum(buffer.nbytes for buffer in layer.buffers())
        stored += 4 * 4 * (layer.values.numel() + bias) + indices
        dense += 4 * 4 * (layer.in_features * layer.out_features + bias)
    assert stored / dense < 0.12


class Allocations(TorchDispatchMode):
    """Shapes of everything that any op returns, those inside our own ops' kernels included."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "padst":
            kernel = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)
            with self:
                result = func.redispatch(kernel, *args, **(kwargs or {}))
        else:
            result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self.largest = max(self.largest, leaf.untyped_storage().nbytes())
        return result


FEATURES, TOKENS = 512, 8


def projections(structure) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(FEATURES, 2 * FEATURES),
        nn.GELU(),
        nn.Linear(2 * FEATURES, FEATURES),
        nn.Linear(FEATURES, FEATURES),
        nn.Linear(FEATURES, 4),
    )
    return padst_fx.sparsify(model, structure, 0.9, permutation="random")


def train_steps(model, optimizer, count):
    for _ in range(count):
        model(torch.randn(TOKENS, FEATURES)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("structure", STRUCTURES, ids=str)
def test_a_plain_step_allocates_nothing_of_a_dense_projections_size(structure):
    model = projections(structure)
    optimizer = torch.optim.AdamW(model.parameters(), foreach=False)
    smallest_dense = FEATURES * FEATURES * 4
    with Allocations() as allocations:
        train_steps(model, optimizer, 2)
    assert 0 < allocations.largest < smallest_dense
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        train_steps(model, optimizer, 2)
    events = [e for e in recorded.profiler.kineto_results.events() if e.name() == "[memory]"]
    assert events
    assert max(event.nbytes() for event in events) < smallest_dense


def test_the_recorder_sees_a_dense_weight():
    model = projections(padst_fx.Unstructured())
    optimizer = torch.optim.AdamW(model.parameters(), foreach=False)
    with Allocations() as allocations:
        train_steps(model, optimizer, 1)
    assert allocations.largest >= FEATURES * FEATURES * 4
