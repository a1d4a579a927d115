"""One block of real models for each structure, so that one engine holds them all."""

from __future__ import annotations

from typing import Any

import model_zoo
import torch
from torch import nn

import padst_fx

WIDTH = 64
HEADS = 4
TOKENS = 12
STRUCTURES: dict[str, padst_fx.Structure] = {
    "block": padst_fx.Block(size=16),
    "diag": padst_fx.Diag(),
    "wide_diag": padst_fx.Diag(width=16),
    "two_four": padst_fx.NM(2, 4),
    "tiled": padst_fx.NM(1, 4, tile=16),
    "unstructured": padst_fx.Unstructured(),
}
SPARSITY = {"two_four": 0.5}


class Blocks(nn.Module):
    """A transformer's blocks, one after the other, on hidden states `[batch, tokens, WIDTH]`."""

    def __init__(self, blocks: list[nn.Module], further: dict[str, Any] | None = None) -> None:
        super().__init__()
        self.blocks = nn.ModuleDict(dict(zip(STRUCTURES, blocks, strict=True)))
        self.further = further or {}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks.values():
            y = block(x, **self.further)
            x = y[0] if isinstance(y, tuple) else y
        return x


def vit() -> Blocks:
    from transformers.models.vit.modeling_vit import ViTLayer

    config = model_zoo.configuration(
        "ViTConfig", hidden_size=WIDTH, num_attention_heads=HEADS, intermediate_size=2 * WIDTH,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, attn_implementation="sdpa",
    )  # fmt: skip
    return Blocks([ViTLayer(config) for _ in STRUCTURES])


def gpt2() -> Blocks:
    from transformers.models.gpt2.modeling_gpt2 import GPT2Block

    config = model_zoo.configuration(
        "GPT2Config", n_embd=WIDTH, n_head=HEADS, n_inner=2 * WIDTH, n_positions=TOKENS,
        resid_pdrop=0.0, attn_pdrop=0.0, attn_implementation="sdpa",
    )  # fmt: skip
    return Blocks([GPT2Block(config, layer_idx=number) for number, _ in enumerate(STRUCTURES)])


def llama() -> Blocks:
    from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding

    config = model_zoo.configuration(
        "LlamaConfig", hidden_size=WIDTH, num_attention_heads=HEADS, num_key_value_heads=2,
        intermediate_size=2 * WIDTH, attn_implementation="sdpa",
    )  # fmt: skip
    places = torch.arange(TOKENS)[None]
    embeddings = LlamaRotaryEmbedding(config)(torch.zeros(1, TOKENS, WIDTH), places)
    layers = [LlamaDecoderLayer(config, layer_idx=number) for number, _ in enumerate(STRUCTURES)]
    return Blocks(layers, {"position_embeddings": embeddings})


FAMILIES = {"vit": vit, "gpt2": gpt2, "llama": llama}


def sparse_blocks(family: str) -> Blocks:
    """The blocks of a family in evaluation mode, each with its own structure, permuted."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = FAMILIES[family]().eval()
        for name, structure in STRUCTURES.items():
            sparsity = SPARSITY.get(name, 0.75)
            padst_fx.sparsify(model.blocks[name], structure, sparsity, permutation="random")
    return model


class Small(nn.Module):
    """Two sparse layers: the least that has something to export."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(WIDTH, 2 * WIDTH)
        self.norm = nn.LayerNorm(2 * WIDTH)
        self.second = nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(torch.relu(self.norm(self.first(x))))


def small(structure: Any = "block", sparsity: float | None = 0.75, **options: Any) -> Small:
    """`Small` in evaluation mode, both layers sparse."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Small().eval()
        wanted = padst_fx.Block(size=16) if structure == "block" else structure
        padst_fx.sparsify(model, wanted, sparsity, include=["first", "second"], **options)
    return model
