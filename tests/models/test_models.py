"""Real models from their configurations: plan, sparsify, train, compile, densify."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from zoo_training import MODELS, STRUCTURES, in_float64, sparsity_of, train

import padst_fx
from padst_fx import SparseLinear


@pytest.mark.parametrize("structure", STRUCTURES, ids=str)
@pytest.mark.parametrize("entry", MODELS, ids=str)
def test_sparsify_train_and_densify(entry, structure):
    model = entry.build().double()
    plan = padst_fx.plan(model, structure, sparsity_of(structure))
    assert len(plan.replaced) >= 2
    assert all(entry.reason for entry in plan.skipped)
    padst_fx.sparsify(model, structure, sparsity_of(structure), permutation="random")
    layers = [module for module in model.modules() if isinstance(module, SparseLinear)]
    assert len(layers) == len(plan.replaced)
    assert train(model.train(), in_float64(entry), 5)
    for layer in layers:
        assert layer.pattern.mask(layer.index).sum() == layer.pattern.nonzeros
    model.eval()
    sparse = in_float64(entry).run(model)
    dense = in_float64(entry).run(padst_fx.densify(model))
    assert not any(isinstance(module, SparseLinear) for module in model.modules())
    torch.testing.assert_close(sparse, dense)


@pytest.mark.parametrize("entry", MODELS, ids=str)
def test_full_density_by_magnitude_changes_nothing(entry):
    model = entry.build()
    expected = entry.run(model)
    padst_fx.sparsify(model, "diag", 0.0, init="magnitude", permutation="random")
    torch.testing.assert_close(entry.run(model), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("entry", MODELS, ids=str)
def test_the_graph_and_the_tree_give_the_same_plan(entry):
    model = entry.build()
    by_tree = padst_fx.plan(model, "diag", 0.9)
    by_graph = padst_fx.plan(model, "diag", 0.9, example_inputs=entry.inputs())
    assert by_graph == by_tree


def test_transformers_works_from_the_repository_root():
    """No top-level package of ours may take a name that transformers looks for."""
    root = Path(__file__).parents[2]
    script = (
        "import importlib.util, padst_fx.kernels, transformers\n"
        "from transformers import ViTConfig, ViTModel\n"
        "ViTModel(ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2,"
        " intermediate_size=8, image_size=8, patch_size=4))\n"
        "assert padst_fx.kernels.__name__ == 'padst_fx.kernels'\n"
    )
    subprocess.run([sys.executable, "-c", script], cwd=root, check=True)
