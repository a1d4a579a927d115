"""Training the models of the zoo for a few steps."""

from __future__ import annotations

import model_zoo
import torch

from padst_fx import DST, NM, Block, Diag, Unstructured

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


def in_float64(entry):
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
