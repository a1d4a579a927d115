"""Real models under `torch.compile(..., backend="padst", fullgraph=True)`."""

from __future__ import annotations

import model_zoo
import pytest
import torch
from zoo_training import MODELS, STRUCTURES, call, in_float64, sparsity_of, train

import padst_fx

# Each model with two structures: one goes on through AOTAutograd and the passes, which is slow; the
# other is captured by Dynamo. Every structure meets as many models.
PAIRS = [
    (entry, STRUCTURES[(i + shift) % len(STRUCTURES)], inner)
    for i, entry in enumerate(MODELS)
    for shift, inner in enumerate(("aot_eager", "eager"))
]


@pytest.mark.parametrize(("entry", "structure", "inner"), PAIRS, ids=str)
def test_compiled_training_equals_eager_training(entry, structure, inner):
    """`fullgraph=True`, five steps with updates."""
    torch._dynamo.reset()
    models = []
    for compiled in (False, True):
        torch.manual_seed(0)
        model = entry.build().double().train()
        padst_fx.sparsify(model, structure, sparsity_of(structure), permutation="random")
        run = model
        if compiled:
            run = torch.compile(model, backend="padst", fullgraph=True, options={"inner": inner})
        assert train(model, in_float64(entry), 5, run)
        models.append(model)
    for (name, eager), compiled in zip(
        models[0].state_dict().items(), models[1].state_dict().values(), strict=True
    ):
        torch.testing.assert_close(compiled, eager, rtol=1e-6, atol=1e-8, msg=name)


def test_inductor_runs_forward_and_backward():
    """On the model with the most kinds of pieces; the examples compile a vision transformer."""
    torch._dynamo.reset()
    entry = model_zoo.get("llama")
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
