"""Blocks of real models whose layers have every structure, so that one engine holds them all."""

from __future__ import annotations

import copy
from itertools import cycle
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
    "diag_runs": padst_fx.Diag(run=4),
    "wide_diag": padst_fx.Diag(width=16),
    "two_four": padst_fx.NM(2, 4),
    "one_four": padst_fx.NM(1, 4),
    "tiled": padst_fx.NM(1, 4, tile=16),
    "unstructured": padst_fx.Unstructured(),
}
SPARSITY = {"two_four": 0.5}


class Blocks(nn.Module):
    """A transformer's blocks, one after the other, on hidden states `[batch, tokens, WIDTH]`."""

    def __init__(self, blocks: list[nn.Module], further: dict[str, Any] | None = None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.further = further or {}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            y = block(x, **self.further)
            x = y[0] if isinstance(y, tuple) else y
        return x


def vit() -> Blocks:
    from transformers.models.vit.modeling_vit import ViTLayer

    config = model_zoo.configuration(
        "ViTConfig", hidden_size=WIDTH, num_attention_heads=HEADS, intermediate_size=2 * WIDTH,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, attn_implementation="sdpa",
    )  # fmt: skip
    return Blocks([ViTLayer(config) for _ in range(2)])


def gpt2() -> Blocks:
    from transformers.models.gpt2.modeling_gpt2 import GPT2Block

    config = model_zoo.configuration(
        "GPT2Config", n_embd=WIDTH, n_head=HEADS, n_inner=2 * WIDTH, n_positions=TOKENS,
        resid_pdrop=0.0, attn_pdrop=0.0, attn_implementation="sdpa",
    )  # fmt: skip
    return Blocks([GPT2Block(config, layer_idx=number) for number in range(2)])


def llama() -> Blocks:
    from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding

    config = model_zoo.configuration(
        "LlamaConfig", hidden_size=WIDTH, num_attention_heads=HEADS, num_key_value_heads=2,
        intermediate_size=2 * WIDTH, attn_implementation="sdpa",
    )  # fmt: skip
    places = torch.arange(TOKENS)[None]
    embeddings = LlamaRotaryEmbedding(config)(torch.zeros(1, TOKENS, WIDTH), places)
    blocks = [LlamaDecoderLayer(config, layer_idx=number) for number in range(2)]
    return Blocks(blocks, {"position_embeddings": embeddings})


FAMILIES = {"vit": vit, "gpt2": gpt2, "llama": llama}


def sparse_blocks(family: str) -> tuple[Blocks, dict[str, str]]:
    """The blocks of a family in evaluation mode, permuted, and which layer has which structure.

    Every structure is there: the layers have them in turn.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        dense = FAMILIES[family]().eval()
        model = copy.deepcopy(dense)
        layers = [name for name, module in dense.named_modules() if hasattr(module, "weight")
                  and module.weight.dim() == 2]  # fmt: skip
        structures = dict(zip(layers, cycle(STRUCTURES), strict=False))
        assert set(structures.values()) == set(STRUCTURES)
        for name, structure in STRUCTURES.items():
            chosen = [layer for layer in layers if structures[layer] == name]
            sparse = padst_fx.sparsify(
                copy.deepcopy(dense), structure, SPARSITY.get(name, 0.75),
                permutation="random", include=chosen,
            )  # fmt: skip
            for layer in chosen:
                model.set_submodule(layer, sparse.get_submodule(layer))
    return model, structures


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


def pair(first: padst_fx.Structure, second: padst_fx.Structure) -> Small:
    """`Small` in evaluation mode, each layer with its own structure, permuted."""
    model, other = (
        small(each, None if isinstance(each, padst_fx.NM) else 0.75, permutation="random")
        for each in (first, second)
    )
    model.second = other.second
    return model
