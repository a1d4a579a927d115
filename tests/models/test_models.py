"""Real models from their configurations: plan, sparsify, train, compile, densify."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import model_zoo
import pytest
import torch

import padst_fx
from padst_fx import DST, NM, Block, Diag, SparseLinear, Unstructured

STRUCTURES = ["diag", Diag(width=8), Block(8), "nm", NM(2, 4), Unstructured()]
MODELS = model_zoo.list()


def call(model, entry, seed=0):
    inputs = entry.inputs(seed)
    return model(**inputs) if isinstance(inputs, dict) else model(*inputs)


def sparsity_of(structure):
    return 0.5 if structure == NM(2, 4) else 0.9


def train(model, entry, steps, run=None):
    """Steps with an update at every second one; whether any changed the topology."""
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    dst = DST(model, optimizer, "rigl", delta_t=2, t_end=100)
    changed = False
    for seed in range(steps):
        loss = entry.loss(call(model if run is None else run, entry, seed)) + dst.penalty()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        changed |= dst.step()
    return changed


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
    assert train(model.train(), _double(entry), 5)
    for layer in layers:
        assert layer.pattern.mask(layer.index).sum() == layer.pattern.nonzeros
    model.eval()
    sparse = _double(entry).run(model)
    dense = _double(entry).run(padst_fx.densify(model))
    assert not any(isinstance(module, SparseLinear) for module in model.modules())
    torch.testing.assert_close(sparse, dense)


def _double(entry):
    """The entry with floating inputs in float64."""

    class Double:
        loss = staticmethod(entry.loss)

        @staticmethod
        def inputs(seed=0):
            inputs = entry.inputs(seed)
            items = inputs.items() if isinstance(inputs, dict) else enumerate(inputs)
            cast = {
                k: v.double() if isinstance(v, torch.Tensor) and v.is_floating_point() else v
                for k, v in items
            }
            return cast if isinstance(inputs, dict) else tuple(cast.values())

        def run(self, model):
            return model_zoo.main_tensor(call(model, self))

    return Double()


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


COMPILED = ["diag", Diag(width=8), Block(8), "nm", Unstructured()]


@pytest.mark.parametrize(
    ("entry", "structure"),
    [(entry, COMPILED[i % len(COMPILED)]) for i, entry in enumerate(MODELS)]
    + [(model_zoo.get("vit"), structure) for structure in STRUCTURES],
    ids=str,
)
def test_compiled_training_equals_eager_training(entry, structure):
    """`fullgraph=True`, five steps with updates; the passes run, the graph runs eagerly."""
    torch._dynamo.reset()
    models = []
    for compiled in (False, True):
        torch.manual_seed(0)
        model = entry.build().double().train()
        padst_fx.sparsify(model, structure, sparsity_of(structure), permutation="random")
        run = model
        if compiled:
            run = torch.compile(
                model, backend="padst", fullgraph=True, options={"inner": "aot_eager"}
            )
        assert train(model, _double(entry), 5, run)
        models.append(model)
    for (name, eager), compiled in zip(
        models[0].state_dict().items(), models[1].state_dict().values(), strict=True
    ):
        torch.testing.assert_close(compiled, eager, rtol=1e-6, atol=1e-8, msg=name)


@pytest.mark.parametrize("name", ["vit", "gpt2", "llama"])
def test_inductor_runs_forward_and_backward(name):
    torch._dynamo.reset()
    entry = model_zoo.get(name)
    model = entry.build().train()
    padst_fx.sparsify(model, "diag", 0.9, permutation="random")
    compiled = torch.compile(model, backend="padst", fullgraph=True)
    gradients = []
    for run in (model, compiled):
        model.zero_grad()
        loss = entry.loss(call(run, entry))
        loss.backward()
        gradients.append((loss, [p.grad for p in model.parameters() if p.grad is not None]))
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-3, atol=1e-4)


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
