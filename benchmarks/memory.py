"""`python -m benchmarks.memory`: what training a ViT-B/16 keeps, dense and 90 % sparse.

Parameters, gradients and AdamW's two moments of the 72 projections and of the whole model, and
the index buffers of the sparse ones, counted from the tensors of a model built from its config.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

import padst_fx
from benchmarks import results_file

SPARSITY = 0.9
STRUCTURES: dict[str, padst_fx.Structure | None] = {
    "dense": None,
    "Diag()": padst_fx.Diag(),
    "Diag(width=16)": padst_fx.Diag(width=16),
    "Block(16)": padst_fx.Block(16),
    "NM(1, 10)": padst_fx.NM(1, 10),
    "NM(1, 10, tile=16)": padst_fx.NM(1, 10, tile=16),
    "Unstructured()": padst_fx.Unstructured(),
}


def training_bytes(structure: padst_fx.Structure | None) -> dict[str, int]:
    """Bytes kept by the projections and by the whole model after one AdamW step."""
    from transformers import ViTConfig, ViTForImageClassification

    model = ViTForImageClassification(ViTConfig())
    names = [
        name
        for name, module in model.vit.named_modules()
        if isinstance(module, nn.Linear) and "layer" in name
    ]
    if structure is not None:
        padst_fx.sparsify(model, structure, SPARSITY, init="random")
    optimizer = torch.optim.AdamW(model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    projections = [model.vit.get_submodule(name) for name in names]
    kept = sum(bytes_of(module, optimizer) for module in projections)
    return {"projections": kept, "model": bytes_of(model, optimizer), "layers": len(projections)}


def bytes_of(module: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Parameters, gradients, optimizer state and buffers of a module, in bytes."""
    total = sum(buffer.nbytes for buffer in module.buffers())
    for parameter in module.parameters():
        assert parameter.grad is not None
        slots = optimizer.state[parameter].values()
        total += parameter.nbytes + parameter.grad.nbytes
        total += sum(slot.nbytes for slot in slots if isinstance(slot, torch.Tensor))
    return total


def main() -> None:
    rows: list[dict[str, Any]] = []
    dense: dict[str, int] = {}
    print("| structure | projections | of dense | whole model | of dense |")
    print("|---|---|---|---|---|")
    for name, structure in STRUCTURES.items():
        found = training_bytes(structure)
        dense = dense or found
        row = {
            "structure": name,
            "layers": found["layers"],
            "projection_bytes": found["projections"],
            "projection_ratio": round(found["projections"] / dense["projections"], 4),
            "model_bytes": found["model"],
            "model_ratio": round(found["model"] / dense["model"], 4),
        }
        rows.append(row)
        print(
            f"| {name} | {found['projections'] / 2**20:.1f} MiB | {row['projection_ratio']:.3f} "
            f"| {found['model'] / 2**20:.1f} MiB | {row['model_ratio']:.3f} |"
        )
    print(f"written to {results_file.write('memory', rows)}")


if __name__ == "__main__":
    main()
