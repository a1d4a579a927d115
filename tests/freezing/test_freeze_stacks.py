"""Random stacks of the pieces that permutations meet: frozen, they compute the same."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from frozen_checks import frozen, reads_through, sparse
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from padst_fx import NM, Block, Diag, Unstructured

E, H = 8, 16
STRUCTURES = (Diag(), Diag(width=4), Block(4), NM(1, 2), NM(1, 2, tile=2), Unstructured(), None)


def layer(into: int, out: int, kind: int, seed: int) -> nn.Module:
    structure = STRUCTURES[kind]
    if structure is None:
        return nn.Linear(into, out)
    made = sparse(into, out, structure, seed=seed)
    if seed % 3 == 0:
        blocks = torch.arange(into, dtype=torch.int32).view(-1, 4)
        made.perm.copy_(blocks.roll(1, 0).flip(1).reshape(-1))
    return made


# Of the first layer, where it is not H.
OUTPUTS = {"gated": 2 * H, "split": 2 * H, "attention": 3 * E, "grouped": 2 * E}


class Piece(nn.Module):
    """One piece: a stream of E features in, one out."""

    def __init__(self, name: str, kinds: tuple[int, int], seed: int) -> None:
        super().__init__()
        self.name = name
        self.up = layer(E, OUTPUTS.get(name, H), kinds[0], seed)
        self.down = layer(E if name in ("attention", "grouped") else H, E, kinds[1], seed + 1)
        norm = nn.LayerNorm if seed % 2 else nn.RMSNorm
        self.norm = norm(E, elementwise_affine=seed % 5 > 0)
        if seed % 5:
            nn.init.normal_(self.norm.weight)
        self.register_buffer("order", torch.randperm(E))
        if name == "low_rank":
            self.thin, self.back = nn.Linear(E, 2, bias=False), nn.Linear(2, H, bias=False)
        if name == "vectors":
            self.scale, self.shift = nn.Parameter(torch.randn(H)), nn.Parameter(torch.randn(1, H))
        if name == "readers":
            self.other = layer(H, E, kinds[0], seed + 2)

    def forward(self, x: Tensor) -> Tensor:
        return getattr(self, f"_{self.name}")(x)

    def _plain(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x)))

    def _pre_norm(self, x: Tensor) -> Tensor:
        return x + self._plain(self.norm(x))

    def _post_norm(self, x: Tensor) -> Tensor:
        return self.norm(x + self._plain(x))

    def _gated(self, x: Tensor) -> Tensor:
        gate, up = self.up(x).chunk(2, dim=-1)
        return x + self.down(F.silu(gate) * up)

    def _split(self, x: Tensor) -> Tensor:
        parts = self.up(x).split((H // 2, H // 2, H), dim=-1)
        return self.down(torch.cat((parts[1], parts[0]), dim=-1) + parts[2])

    def _attention(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        qkv = self.up(x).view(batch, tokens, 3, 2, E // 2)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v)
        return x + self.down(y.transpose(1, 2).reshape(batch, tokens, E))

    def _grouped(self, x: Tensor) -> Tensor:
        """Four heads of queries read two of keys and values, turned by their positions."""
        batch, tokens, _ = x.shape
        parts = self.up(x).split((E, E // 2, E // 2), dim=-1)
        q, k, v = (part.view(batch, tokens, -1, 2).transpose(1, 2) for part in parts)
        angle = torch.arange(tokens, dtype=x.dtype)[:, None]
        q, k = (
            part * angle.cos() + torch.cat((-part[..., 1:], part[..., :1]), -1) * angle.sin()
            for part in (q, k)
        )
        k, v = (part.repeat_interleave(2, dim=1) for part in (k, v))
        y = F.scaled_dot_product_attention(q, k, v)
        return x + self.down(y.transpose(1, 2).reshape(batch, tokens, E))

    def _low_rank(self, x: Tensor) -> Tensor:
        return x + self.down(F.relu(self.up(x) + 0.5 * self.back(self.thin(x))))

    def _vectors(self, x: Tensor) -> Tensor:
        return self.down(self.up(x) * self.scale + self.shift)

    def _readers(self, x: Tensor) -> Tensor:
        hidden = F.silu(self.up(x))
        return self.down(hidden) - self.other(hidden)

    def _gather(self, x: Tensor) -> Tensor:
        return x[..., self.order].relu() + x

    def _barrier(self, x: Tensor) -> Tensor:
        return x.cumsum(-1)

    def _twice(self, x: Tensor) -> Tensor:
        return self._plain(self._plain(x))


NAMES = tuple(name[1:] for name in vars(Piece) if name[:1] == "_" and name[:2] != "__")
KINDS = st.integers(0, len(STRUCTURES) - 1)
PIECES = st.lists(
    st.tuples(st.sampled_from(NAMES), st.tuples(KINDS, KINDS), st.integers(0, 100)),
    min_size=1,
    max_size=4,
)


class Tied(nn.Module):
    """Tokens in, logits out, by one table at both ends."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, E)
        self.inner = inner

    def forward(self, ids: Tensor) -> Tensor:
        return F.linear(self.inner(self.embedding(ids)), self.embedding.weight)


@settings(max_examples=40, deadline=None)
@given(PIECES, st.sampled_from(("none", "dense", "tied")), st.integers(-1, 4))
def test_stacks(pieces, ends, dropout):
    """`dropout` is active in front of this piece; nowhere where it is negative."""
    torch.manual_seed(len(pieces))
    parts: list[nn.Module] = [Piece(*piece) for piece in pieces]
    if dropout >= 0:
        parts.insert(min(dropout, len(parts)), nn.Dropout(0.3))
    if ends == "dense":
        parts = [nn.Linear(E, E), *parts, nn.Linear(E, 3)]
    model, x = nn.Sequential(*parts), torch.randn(2, 3, E, dtype=torch.float64)
    if ends == "tied":
        model, x = Tied(model), torch.randint(11, (2, 3))
    result = frozen(model.train(dropout >= 0), x)
    assert reads_through(result) == result.report.counts["read through"]
