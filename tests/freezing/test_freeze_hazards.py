"""One small module for each thing that can go wrong: the same outputs, and the gathers expected."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from frozen_checks import assert_same, frozen, gathers_in, reads_through, sparse
from torch import Tensor, nn

import padst_fx
from padst_fx import NM, Block, Diag, SparseLinear, Unstructured

E = 16
X = torch.randn(2, 5, E, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


class Custom(nn.Module):
    """Named parts and a function of them and the input."""

    def __init__(self, forward, **parts: nn.Module) -> None:
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)
        self.function = forward

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.function(self, *inputs)


def counts(model: nn.Module, *inputs: Tensor) -> dict[str, int]:
    """What becomes of the permutations; the graph agrees."""
    result = frozen(model, *(inputs or (X,)))
    assert reads_through(result) == result.report.counts["read through"], str(result.report)
    return dict(result.report.counts)


def test_dense_rows_take_the_order():
    model = nn.Sequential(nn.Linear(E, 24), nn.GELU(), sparse(24, E))
    assert counts(model) == {"folded": 1}


def test_an_input_of_the_model_stays():
    model = nn.Sequential(sparse(E, 24), nn.GELU(), nn.Linear(24, E))
    assert counts(model) == {"read through": 1}


@pytest.mark.parametrize(
    "structure, fate",
    [
        (Diag(), "read through"),
        (Diag(width=4), "read through"),
        (Block(4), "read through"),
        (NM(1, 2, tile=4), "read through"),
        (NM(1, 2), "folded"),
        (Unstructured(), "folded"),
    ],
)
def test_rows_of_a_sparse_producer(structure, fate):
    """Single rows can be moved where rows are stored one by one."""
    model = nn.Sequential(nn.Linear(E, E), sparse(E, 24, structure), nn.ReLU(), sparse(24, E))
    assert counts(model) == {"folded": 1 + (fate == "folded")} | (
        {fate: 1} if fate != "folded" else {}
    )


def blockwise(size: int, block: int) -> Tensor:
    """A permutation that moves whole blocks and turns each of them round."""
    blocks = torch.arange(size, dtype=torch.int32).view(-1, block)
    return blocks.roll(1, 0).flip(1).reshape(-1)


@pytest.mark.parametrize("structure", [Diag(width=4), Block(4), NM(1, 2, tile=4)])
@pytest.mark.parametrize("sizes", [(16, 24), (24, 16), (16, 16)])
def test_row_blocks_of_a_sparse_producer(structure, sizes):
    into, out = sizes
    consumer = sparse(out, E)
    consumer.perm.copy_(blockwise(out, 4))
    producer = SparseLinear(into, out, structure, 0.5, dtype=torch.float64)
    inputs = torch.randn(3, into, dtype=torch.float64)
    model = nn.Sequential(producer, nn.ReLU(), consumer)
    assert counts(model, inputs) == {"folded": 1}


@pytest.mark.parametrize(
    "structure, block", [(Diag(width=4), 4), (Block(4), 4), (NM(1, 4), 4), (NM(2, 4, tile=2), 4)]
)
@pytest.mark.parametrize("sizes", [(16, 24), (24, 16), (16, 16)])
def test_an_index_absorbs_whole_blocks(structure, block, sizes):
    into, out = sizes
    sparsity = 0.75 if structure == NM(1, 4) else 0.5
    layer = SparseLinear(
        into, out, structure, sparsity, permutation="random", dtype=torch.float64
    )
    layer.perm.copy_(blockwise(into, block))
    model = nn.Sequential(layer)
    assert counts(model, torch.randn(3, into, dtype=torch.float64)) == {"absorbed": 1}


def test_residual_stream_of_a_dense_block():
    """Both ends of the stream are dense, so that embedding, branch and head take one order."""

    def forward(self, ids):
        x = self.embedding(ids)
        x = x + self.out(F.gelu(self.into(x)))
        return self.head(x)

    model = Custom(forward, embedding=nn.Embedding(7, E), into=sparse(E, 24), out=nn.Linear(24, E),
                   head=nn.Linear(E, 3))  # fmt: skip
    ids = torch.randint(7, (2, 5))
    assert counts(model, ids) == {"folded": 1}


def test_residual_of_the_input_stays():
    def forward(self, x):
        return self.head(x + self.layer(x))

    model = Custom(forward, layer=sparse(E, E), head=nn.Linear(E, 3))
    assert counts(model) == {"read through": 1}


def test_disagreeing_readers_share_one_stream():
    """Of three orders over one stream one is folded; the same order twice counts double."""

    def forward(self, x):
        x = self.first(x)
        return self.a(x) + self.b(x) + self.c(x)

    a, b, c = (sparse(E, 8, seed=seed) for seed in range(3))
    model = Custom(forward, first=nn.Linear(E, E), a=a, b=b, c=c)
    assert counts(model) == {"folded": 1, "read through": 2}
    b.perm.copy_(c.perm)
    result = frozen(model, X)
    assert dict(result.report.counts) == {"folded": 2, "read through": 1}
    assert [x.name for x in result.report.accounts if x.fate == "read through"] == ["a"]


def test_an_identity_reader_votes_too():
    def forward(self, x):
        x = self.first(x)
        return self.a(x) + self.b(x) + self.c(x)

    plain = [SparseLinear(E, 8, "diag", 0.5, dtype=torch.float64) for _ in range(2)]
    model = Custom(forward, first=nn.Linear(E, E), a=sparse(E, 8), b=plain[0], c=plain[1])
    assert counts(model) == {"read through": 1}


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("kind", [nn.LayerNorm, nn.RMSNorm])
def test_norm_between(kind, affine):
    model = nn.Sequential(nn.Linear(E, E), kind(E, elementwise_affine=affine), sparse(E, 8))
    if affine:
        nn.init.normal_(model[1].weight)
    assert counts(model) == {"folded": 1}


def test_norm_of_an_input_of_the_model():
    assert counts(nn.Sequential(nn.LayerNorm(E), sparse(E, 8))) == {"read through": 1}


@pytest.mark.parametrize("norm_first", [True, False])
def test_pre_and_post_norm(norm_first):
    def forward(self, x):
        x = self.into(x)
        branch = self.norm(x) if norm_first else x
        x = x + self.down(F.relu(self.up(branch)))
        return self.head(x if norm_first else self.norm(x))

    norm = nn.LayerNorm(E)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    model = Custom(forward, into=nn.Linear(E, E), norm=norm, up=sparse(E, 24, NM(1, 2)),
                   down=sparse(24, E, NM(1, 2), seed=1), head=nn.Linear(E, 3))  # fmt: skip
    assert counts(model) == {"folded": 2}


def test_rms_norm_written_out():
    def forward(self, x):
        x = self.into(x)
        x = self.scale * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))
        return self.layer(x)

    model = Custom(forward, into=nn.Linear(E, E), layer=sparse(E, 8))
    model.scale = nn.Parameter(torch.randn(E))
    assert counts(model) == {"folded": 1}


def test_norm_over_two_dimensions_is_a_barrier():
    model = nn.Sequential(nn.Linear(E, E), nn.LayerNorm((5, E)), sparse(E, 8))
    assert counts(model) == {"read through": 1}


def test_group_norm_is_a_barrier():
    model = nn.Sequential(nn.Linear(E, E), nn.GroupNorm(2, E), sparse(E, 8))
    assert counts(model, X[0]) == {"read through": 1}


class Attention(nn.Module):
    """Self-attention whose output projection reads through a permutation."""

    def __init__(self, kv_heads=4, fused=False, rotary=False, within=True, math=False) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.size = 4, kv_heads, 4
        self.fused, self.rotary, self.math = fused, rotary, math
        wide = kv_heads * self.size
        self.qkv = nn.Linear(E, E + 2 * wide)
        self.out = sparse(E, E)
        if within:
            generator = torch.Generator().manual_seed(3)
            rows = [torch.randperm(4, generator=generator) + 4 * head for head in range(4)]
            self.out.perm.copy_(torch.cat(rows))

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        if self.fused:
            qkv = self.qkv(x).view(batch, tokens, 3, self.heads, self.size)
            q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        else:
            wide = self.kv_heads * self.size
            parts = self.qkv(x).split((E, wide, wide), dim=-1)
            q, k, v = (p.view(batch, tokens, -1, self.size).transpose(1, 2) for p in parts)
        if self.rotary:
            q, k = self._rotate(q), self._rotate(k)
        if self.kv_heads < self.heads:
            k, v = (self._repeat(part) for part in (k, v))
        if self.math:
            y = (q @ k.transpose(-2, -1)).softmax(-1) @ v
        else:
            y = F.scaled_dot_product_attention(q, k, v)
        return self.out(y.transpose(1, 2).reshape(batch, tokens, -1))

    def _repeat(self, part: Tensor) -> Tensor:
        batch, heads, tokens, size = part.shape
        times = self.heads // heads
        return part[:, :, None].expand(batch, heads, times, tokens, size).reshape(
            batch, heads * times, tokens, size
        )

    def _rotate(self, x: Tensor) -> Tensor:
        angle = torch.arange(x.shape[-2], dtype=x.dtype)[:, None]
        turned = torch.cat((-x[..., 2:], x[..., :2]), dim=-1)
        return x * angle.cos() + turned * angle.sin()


@pytest.mark.parametrize("math", [True, False])
@pytest.mark.parametrize("fused", [True, False])
def test_values_take_an_order_within_heads(fused, math):
    result = frozen(Attention(fused=fused, math=math), X)
    assert dict(result.report.counts) == {"folded": 1}
    assert "qkv.weight" in result.report.accounts[0].detail


def test_an_order_across_heads_is_read_through():
    assert counts(Attention(within=False)) == {"read through": 1}


def test_grouped_queries_share_their_values():
    assert counts(Attention(kv_heads=2)) == {"read through": 1}


def test_rotary_positions_leave_values_free():
    assert counts(Attention(rotary=True)) == {"folded": 1}


def test_rotary_positions_bar_what_they_turn():
    def forward(self, x):
        x = self.first(x)
        half = E // 2
        turned = torch.cat((-x[..., half:], x[..., :half]), dim=-1)
        return self.layer(x * 0.5 + turned * 0.25)

    model = Custom(forward, first=nn.Linear(E, E), layer=sparse(E, 8))
    assert counts(model) == {"read through": 1}


def test_fused_queries_keys_and_values_that_are_sparse():
    """The rows of a third of a fused projection, within heads."""
    model = Attention()
    model.qkv = sparse(E, 3 * E, NM(1, 2), seed=4)
    assert counts(model) == {"folded": 1, "read through": 1}


@pytest.mark.parametrize("split", [True, False])
def test_both_branches_of_a_gated_mlp(split):
    def forward(self, x):
        if split:
            gate, up = self.gate_up(x).chunk(2, dim=-1)
        else:
            gate, up = self.gate(x), self.up(x)
        return self.down(F.silu(gate) * up)

    parts = (
        {"gate_up": nn.Linear(E, 48)}
        if split
        else {"gate": nn.Linear(E, 24), "up": nn.Linear(E, 24)}
    )
    model = Custom(forward, down=sparse(24, E), **parts)
    assert counts(model) == {"folded": 1}


def test_concatenated_parts_have_orders_of_their_own():
    def forward(self, x):
        a, b = self.a(x), self.b(x)
        return self.whole(torch.cat((a, b), dim=-1)) + self.part(b)

    model = Custom(forward, a=nn.Linear(E, 8), b=nn.Linear(E, 8), whole=nn.Linear(16, 4),
                   part=sparse(8, 4))  # fmt: skip
    assert counts(model) == {"folded": 1}


def test_a_concatenation_read_as_a_whole():
    def forward(self, x):
        return self.whole(torch.cat((self.a(x), self.b(x)), dim=-1))

    model = Custom(forward, a=nn.Linear(E, 8), b=nn.Linear(E, 8), whole=sparse(16, 4))
    assert counts(model) == {"read through": 1}


def test_parts_cut_in_two_ways():
    def forward(self, x):
        x = self.first(x)
        a, b = x.split((4, 12), dim=-1)
        c, d = x.split((8, 8), dim=-1)
        return self.a(a) + self.b(b) + self.c(c) + self.d(d)

    model = Custom(forward, first=nn.Linear(E, E), a=sparse(4, 4), b=sparse(12, 4),
                   c=sparse(8, 4), d=sparse(8, 4))  # fmt: skip
    assert counts(model) == {"read through": 4}


@pytest.mark.parametrize("with_scale", [True, False])
def test_tied_embedding(with_scale):
    """Columns of the one table are the stream at both its ends."""

    def forward(self, ids):
        x = self.embedding(ids)
        if with_scale:
            x = x * 4.0
        x = x + self.layer(x)
        return F.linear(x, self.embedding.weight)

    model = Custom(forward, embedding=nn.Embedding(11, E), layer=sparse(E, E, NM(1, 2)))
    result = frozen(model, torch.randint(11, (2, 5)))
    assert dict(result.report.counts) == {"folded": 1}
    assert sum("embedding" in name for name in result.state_dict()) == 1


def test_a_tied_weight_with_a_second_role_stays():
    """The same square matrix between streams whose orders differ: inputs bar its columns."""

    def forward(self, x):
        return self.layer(self.shared(self.shared(x)))

    model = Custom(forward, shared=nn.Linear(E, E), layer=sparse(E, 8))
    assert counts(model) == {"read through": 1}


def test_a_layer_used_twice():
    def forward(self, x):
        x = self.first(x)
        return self.layer(F.relu(self.layer(x)))

    model = Custom(forward, first=nn.Linear(E, E), layer=sparse(E, E))
    assert counts(model) == {"folded": 1, "read through": 1}


@pytest.mark.parametrize("bias", [True, False])
def test_a_layer_used_twice_has_rows_for_each_use(bias):
    """But its one bias, where it has one, must stay as the second use needs it."""

    def forward(self, x):
        return self.layer(F.relu(self.layer(x))) + 1

    model = Custom(forward, layer=sparse(E, E, NM(1, 2), bias=bias))
    expected = {"read through": 2} if bias else {"read through": 1, "folded": 1}
    assert counts(model) == expected


def test_a_tensor_with_several_readers():
    """A dense reader takes the order in its columns; an output of the model does not."""

    def forward(self, x):
        x = self.first(x)
        return self.sparse(x) + self.dense(x)

    def leaking(self, x):
        x = self.first(x)
        return self.sparse(x), x

    parts = {"first": nn.Linear(E, E), "sparse": sparse(E, 8), "dense": nn.Linear(E, 8)}
    assert counts(Custom(forward, **parts)) == {"folded": 1}
    assert counts(Custom(leaking, **parts)) == {"read through": 1}


def test_active_dropout_is_a_barrier():
    model = nn.Sequential(nn.Linear(E, E), nn.Dropout(0.5), sparse(E, 8))
    assert counts(model.train()) == {"read through": 1}
    assert counts(model.eval()) == {"folded": 1}


def test_broadcast_vectors_follow():
    def forward(self, x):
        return self.layer((self.first(x) + self.shift) * self.scale - self.number)

    model = Custom(forward, first=nn.Linear(E, E, bias=False), layer=sparse(E, 8))
    model.shift = nn.Parameter(torch.randn(E))
    model.scale = nn.Parameter(torch.randn(1, 1, E))
    model.number = nn.Parameter(torch.randn(()))
    assert counts(model) == {"folded": 1}


def test_a_vector_of_the_input_bars():
    def forward(self, x):
        return self.layer(self.first(x) * x.mean(1, keepdim=True))

    model = Custom(forward, first=nn.Linear(E, E), layer=sparse(E, 8))
    assert counts(model) == {"read through": 1}


def test_sums_of_low_rank_updates():
    def forward(self, x):
        return self.layer(self.base(x) + 0.5 * self.up(self.down(x)))

    model = Custom(forward, base=nn.Linear(E, E), down=nn.Linear(E, 2, bias=False),
                   up=nn.Linear(2, E, bias=False), layer=sparse(E, 8))  # fmt: skip
    assert counts(model) == {"folded": 1}


def test_parametrised_weights_are_computed_once():
    dense = torch.nn.utils.parametrizations.weight_norm(nn.Linear(E, E))
    assert counts(nn.Sequential(dense, sparse(E, 8))) == {"folded": 1}


def test_softmax_and_reductions_over_the_axis():
    def forward(self, x):
        x = self.first(x).softmax(-1)
        return self.layer(x / x.amax(-1, keepdim=True)) + x.sum(-1, keepdim=True)

    model = Custom(forward, first=nn.Linear(E, E), layer=sparse(E, 8))
    assert counts(model) == {"folded": 1}


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.cumsum(-1),
        lambda x: x.roll(1, -1),
        lambda x: x.flip(-1),
        lambda x: x + torch.arange(E, dtype=x.dtype),
        lambda x: x.view(2, 5, 4, 4).transpose(2, 3).reshape(2, 5, E),
        lambda x: x.view(2, 5, 4, 4).softmax(-1).view(2, 5, E),
        lambda x: x * x.argmax(-1, keepdim=True),
        lambda x: x.clone().index_fill_(-1, torch.tensor([1]), 0.0),
        lambda x: F.pad(x, (1, 0))[..., :-1],
    ],
)
def test_barriers(function):
    def forward(self, x):
        return self.layer(function(self.first(x)))

    model = Custom(forward, first=nn.Linear(E, E), layer=sparse(E, 8))
    assert counts(model) == {"read through": 1}


def test_writing_in_place_is_made_functional():
    def forward(self, x):
        y = self.first(x)
        y += 1
        y[..., :4].mul_(2.0)
        return self.layer(y.relu_())

    model = Custom(forward, first=nn.Linear(E, E), layer=sparse(E, 8))
    assert counts(model) == {"read through": 1}


@torch.library.custom_op("padst_fx_test::turn", mutates_args=())
def turn(x: Tensor) -> Tensor:
    return x.roll(1, -1)


@turn.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


def test_an_unknown_op_is_a_barrier():
    def forward(self, x):
        return self.layer(turn(self.first(x)))

    model = Custom(forward, first=nn.Linear(E, E), layer=sparse(E, 8))
    result = frozen(model, X)
    assert dict(result.report.counts) == {"read through": 1}
    assert "turn" in result.report.accounts[0].detail


def permuting(*sizes: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randperm(size, generator=generator) for size in sizes]


def test_gathers_that_meet_cancel():
    def forward(self, x):
        return self.out(x[..., self.p].relu()[..., self.q])

    model = Custom(forward, out=nn.Identity())
    (p,) = permuting(E)
    model.register_buffer("p", p)
    model.register_buffer("q", p.argsort())
    assert counts(model) == {"cancelled": 2}


def test_gathers_compose():
    """Two in a row are one, which the sparse layer reads through."""

    def forward(self, x):
        return self.layer(x[..., self.p].relu().index_select(-1, self.q))

    model = Custom(forward, layer=sparse(E, 8))
    for name, perm in zip("pq", permuting(E, E), strict=True):
        model.register_buffer(name, perm)
    result = frozen(model, X)
    assert gathers_in(result) == 0
    assert result.report.counts["read through"] == 1


def test_a_gather_that_stays_is_moved_to_the_smaller_tensor():
    """Between two outputs that bar it: behind the mean over tokens it costs a fifth."""

    def forward(self, x):
        return x[..., self.p].relu().mean(1).cumsum(-1)

    model = Custom(forward)
    model.register_buffer("p", permuting(E)[0])
    result = frozen(model, X)
    assert dict(result.report.counts) == {"gather": 1, "cancelled": 1}
    (gather,) = [n for n in result.program.graph.nodes if "index_select" in str(n.target)]
    assert "mean" in str(gather.args[0])


def test_a_picked_subset_is_no_permutation():
    def forward(self, x):
        return self.layer(self.first(x)[..., self.p])

    model = Custom(forward, first=nn.Linear(E, E), layer=sparse(E, 8))
    model.register_buffer("p", torch.zeros(E, dtype=torch.int64))
    result = padst_fx.freeze(model.double(), (X,), skip_slower=False)
    assert_same(result(X), model(X))
    assert dict(result.report.counts) == {"read through": 1}
