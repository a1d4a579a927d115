"""Training steps of a ViT-B/16: forward, backward and AdamW, 90 % sparse, fp32.

The model and its loss are compiled, and for comparison eager, the optimizer is torch's fused
AdamW. Every contestant starts from the weights it has, on the same images, and is checked against a
dense model that computes the same: the loss and every gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import padst_fx
from benchmarks.compiled import compiled
from benchmarks.measured import DENSE, Contestant, measure
from benchmarks.models import draw, permutation_notes, shown, vit_b16
from benchmarks.settings import Settings
from benchmarks.structures import MODELS, QUICK_MODELS, SPARSITY, STRUCTURES
from benchmarks.table import Row, Table, noise_note

BATCH = 8
QUICK_BATCH = 2
# Of the largest entry of each gradient, and of the loss.
TOLERANCE = 1e-3
NEGLIGIBLE = 1e-4


@dataclass(frozen=True)
class Trainer:
    """A model, its optimizer and a batch."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    loss: Callable[[Tensor, Tensor], Tensor]
    images: Tensor
    labels: Tensor

    @classmethod
    def of(cls, model: nn.Module, batch: int, backend: str = "padst") -> Trainer:
        torch.manual_seed(1)
        images, labels = torch.randn(batch, 3, 224, 224), torch.randint(1000, (batch,))
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
        loss = compiled(partial(_loss, model), backend)
        return cls(model, optimizer, loss, images, labels)

    @property
    def eager(self) -> Trainer:
        """The same model and optimizer, uncompiled."""
        return replace(self, loss=partial(_loss, self.model))

    def step(self) -> None:
        """One whole training step."""
        self.loss(self.images, self.labels).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def error(self) -> float:
        """Of loss and gradients against a dense eager model, as a share of what is allowed.

        Projections are compared where the sparse weight has entries.
        """
        twin = dense_twin(self.model)
        expected = _loss(twin, self.images, self.labels)
        expected.backward()
        found = self.loss(self.images, self.labels)
        found.backward()
        dense = dict(twin.named_parameters())
        gradients: list[tuple[Tensor | None, Tensor | None]] = []
        for name, module in self.model.named_modules():
            if isinstance(module, padst_fx.SparseLinear):
                weight = dense.pop(f"{name}.weight").grad
                gradients.append((module.values.grad, _in_structure(module, weight)))
        own = dict(self.model.named_parameters())
        gradients += [(own[name].grad, parameter.grad) for name, parameter in dense.items()]
        error = max(_share(found.detach(), expected.detach()), _largest_share(gradients))
        self.optimizer.zero_grad()
        return error


def dense_twin(model: nn.Module) -> nn.Module:
    """A dense model that computes the same, with weights of its own."""
    twin = deepcopy(model)
    sparse = any(isinstance(module, padst_fx.SparseLinear) for module in twin.modules())
    return padst_fx.densify(twin) if sparse else twin


def _loss(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(model(images).logits, labels)


def _in_structure(layer: padst_fx.SparseLinear, gradient: Tensor | None) -> Tensor:
    """The entries of a dense `[out, in]` gradient that the layer has values for."""
    assert gradient is not None
    columns = gradient[:, layer.perm.long()] if layer.perm.numel() else gradient
    return layer.pattern.values_from_dense(columns, layer.index)


def _largest_share(gradients: list[tuple[Tensor | None, Tensor | None]]) -> float:
    """The largest error of all (found, expected) gradients.

    Some are zero but for rounding, as those of the keys' biases, so none counts as smaller than
    `NEGLIGIBLE` of the largest.
    """
    pairs = [(a, b) for a, b in gradients if a is not None and b is not None]
    if len(pairs) < len(gradients):
        return float("inf")
    largest = max(float(expected.abs().max()) for _, expected in pairs)
    return max(_share(found, expected, NEGLIGIBLE * largest) for found, expected in pairs)


def _share(found: Tensor, expected: Tensor, least: float = 0.0) -> float:
    error = (found - expected).abs().max() / (TOLERANCE * expected.abs().max().clamp(min=least))
    return float(error.nan_to_num(nan=torch.inf))


def trainers(settings: Settings, names: list[str]) -> Iterator[tuple[str, str, Trainer]]:
    """Label, permutation and trainer: dense, every structure, and some permuted."""
    batch = QUICK_BATCH if settings.quick else BATCH
    yield DENSE, "", Trainer.of(vit_b16(settings.layers), batch, "inductor")
    for name in names:
        for permutation in settings.permutations(name):
            model = padst_fx.sparsify(
                vit_b16(settings.layers), STRUCTURES[name], SPARSITY, permutation=permutation
            )
            label = name if permutation == "identity" else f"{name}, permuted"
            yield label, permutation, Trainer.of(model, batch)


def run(settings: Settings) -> Table:
    """Measure a training step of every structure."""
    names = settings.choose(MODELS, QUICK_MODELS)
    entries = [
        Contestant(label, mode, each.step, each.error, {"permutation": permutation})
        for label, permutation, trainer in trainers(settings, names)
        for mode, each in {"compiled": trainer, "eager": trainer.eager}.items()
        if mode == "compiled" or permutation in ("", "identity")
    ]
    batch = QUICK_BATCH if settings.quick else BATCH
    layers = f" (layers: {settings.layers})" if settings.quick else ""
    facts: Row = {"workload": f"ViT-B/16{layers}, training step, batch {batch}"}
    rows = measure(entries, settings.rounds, facts)
    torch.compiler.reset()
    return Table(
        name="training",
        title="dense time by sparse time, a training step, fp32 (above 1: sparse is faster)",
        rows=rows,
        shown=shown(rows),
        draw=partial(draw, rows),
        notes=[*permutation_notes(rows), noise_note(rows)],
    )
