"""The models of the study that the examples do not have."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from examples.digits_vit.model import CLASSES, PATCH, PATCHES

BYTES = 256
# Heads' slopes go from 1 to this power of two.
LEAST_POWER = -6.0


class MixerBlock(nn.Module):
    """Mixes patches, then channels (arXiv:2105.01601), each by an MLP with a residual."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.patch_norm = nn.LayerNorm(width)
        self.patch_in = nn.Linear(PATCHES, 4 * PATCHES)
        self.patch_out = nn.Linear(4 * PATCHES, PATCHES)
        self.channel_norm = nn.LayerNorm(width)
        self.channel_in = nn.Linear(width, 4 * width)
        self.channel_out = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        patches = self.patch_norm(x).transpose(1, 2)
        x = x + self.patch_out(F.gelu(self.patch_in(patches))).transpose(1, 2)
        return x + self.channel_out(F.gelu(self.channel_in(self.channel_norm(x))))


class Mixer(nn.Module):
    """Images `[N, 8, 8]` to logits `[N, 10]`: 16 patches, `depth` mixer blocks, their mean."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.embed = nn.Linear(PATCH * PATCH, width)
        self.blocks = nn.ModuleList(MixerBlock(width) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        patches = images.unflatten(1, (-1, PATCH)).unflatten(3, (-1, PATCH)).transpose(2, 3)
        x = self.embed(patches.flatten(3).flatten(1, 2))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(dim=1))


class CausalBlock(nn.Module):
    """A pre-norm transformer block whose tokens see those before them, near ones best: a head takes
    its slope off a score per byte in between (arXiv:2108.12409)."""

    bias: Tensor

    def __init__(self, width: int, heads: int, length: int) -> None:
        super().__init__()
        self.heads = heads
        place = torch.arange(length)
        distance = (place[:, None] - place).float()
        slopes = torch.logspace(0, LEAST_POWER, heads, base=2)
        bias = (-slopes[:, None, None] * distance).masked_fill(distance < 0, -torch.inf)
        self.register_buffer("bias", bias, persistent=False)
        self.attention_norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out_proj = nn.Linear(width, width)
        self.mlp_norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        packed = self.qkv(self.attention_norm(x)).unflatten(-1, (3, self.heads, -1))
        q, k, v = packed.permute(2, 0, 3, 1, 4)
        heads = F.scaled_dot_product_attention(q, k, v, attn_mask=self.bias)
        x = x + self.out_proj(heads.transpose(1, 2).flatten(2))
        return x + self.fc2(F.gelu(self.fc1(self.mlp_norm(x))))


class GPT(nn.Module):
    """Bytes `[N, L]` to logits `[N, L, 256]` of the next byte; the head shares the embedding."""

    def __init__(self, width: int, depth: int, heads: int, length: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(BYTES, width)
        self.blocks = nn.ModuleList(CausalBlock(width, heads, length) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        nn.init.normal_(self.embed.weight, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x)
        return F.linear(self.norm(x), self.embed.weight)
