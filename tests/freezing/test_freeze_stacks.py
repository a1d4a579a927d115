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


class Piece(nn.Module):
    """One piece: a stream of E features in, one out."""

    def __init__(self, name: str, kinds: tuple[int, int], seed: int) -> None:
        super().__init__()
        self.name = name
        gate = 2 if name in ("gated", "split") else 3 if name == "attention" else 1
        wide = E if name == "attention" else H
        self.up = layer(E, gate * wide, kinds[0], seed)
        self.down = layer(wide, E, kinds[1], seed + 1)
        self.norm = (nn.LayerNorm if seed % 2 else nn.RMSNorm)(E)
        nn.init.normal_(self.norm.weight)
        self.register_buffer("order", torch.randperm(E))

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


@settings(max_examples=25, deadline=None)
@given(PIECES, st.booleans(), st.booleans())
def test_stacks(pieces, dense_ends, trains):
    torch.manual_seed(len(pieces))
    parts: list[nn.Module] = [Piece(*piece) for piece in pieces]
    if trains:
        parts.insert(1, nn.Dropout(0.3))
    if dense_ends:
        parts = [nn.Linear(E, E), *parts, nn.Linear(E, 3)]
    model = nn.Sequential(*parts).train(trains)
    result = frozen(model, torch.randn(2, 3, E, dtype=torch.float64))
    assert reads_through(result) == result.report.counts["read through"]
