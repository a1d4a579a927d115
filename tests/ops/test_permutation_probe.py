"""The permutation probe: its gradient against dense float64 maths, for every structure."""

from __future__ import annotations

import pytest
import torch

from padst_fx import NM, Block, Diag, SparseLinear, Unstructured

STRUCTURES = [(Diag(), 0.75), (Diag(width=4), 0.5), (Block(4), 0.5), (NM(2, 4), None),
              (Unstructured(), 0.75)]  # fmt: skip


def layer(structure, sparsity, dtype=torch.float64):
    torch.manual_seed(0)
    made = SparseLinear(16, 24, structure, sparsity, permutation="learned", dtype=dtype)
    made.perm.copy_(torch.randperm(16))
    made.consider_positions(5)
    made.positions.copy_(torch.tensor([1, 4, 5, 11, 15]))
    return made


def expected(made, x, cotangent):
    """Gradients of even and of odd samples, and the second moments of all."""
    read = x[..., made.perm.long()[made.positions.long()]].double()
    halves = [
        cotangent[first::2].double().flatten(0, -2).t() @ read[first::2].flatten(0, -2)
        for first in range(2)
    ]
    tokens = read.flatten(0, -2)
    return torch.cat((*halves, tokens.t() @ tokens))


@pytest.mark.parametrize(("structure", "sparsity"), STRUCTURES, ids=str)
def test_the_gradient_of_the_probe_is_the_signal(structure, sparsity):
    made = layer(structure, sparsity)
    x = torch.randn(2, 3, 16, dtype=torch.float64, requires_grad=True)
    plain = made(x)
    cotangent = torch.randn_like(plain)
    gradients = torch.autograd.grad(plain, (x, made.values, made.bias), cotangent)
    probe = made.ask_for_signal()
    scoring = made(x)
    scoring.backward(cotangent)
    assert torch.equal(scoring, plain)
    torch.testing.assert_close(probe.grad, expected(made, x.detach(), cotangent))
    for got, wanted in zip((x.grad, made.values.grad, made.bias.grad), gradients, strict=True):
        assert torch.equal(got, wanted)


def test_parts_of_a_batch_add_up():
    made = layer(Diag(), 0.75)
    probe = made.ask_for_signal()
    x, cotangent = (torch.randn(8, n, dtype=torch.float64) for n in (16, 24))
    for part in (slice(0, 2), slice(2, 8)):
        made(x[part]).backward(cotangent[part])
    torch.testing.assert_close(probe.grad, expected(made, x, cotangent))


def test_tokens_of_a_single_sample_take_turns():
    made = layer(Diag(), 0.75)
    probe = made.ask_for_signal()
    x, cotangent = (torch.randn(1, 7, n, dtype=torch.float64) for n in (16, 24))
    made(x).backward(cotangent)
    torch.testing.assert_close(probe.grad, expected(made, x[0], cotangent[0]))


def test_both_probes_share_a_step():
    made = layer(Block(4), 0.5)
    probe, other = made.ask_for_signal(), made.ask_for_scores()
    x, cotangent = (torch.randn(8, n, dtype=torch.float64) for n in (16, 24))
    made(x).backward(cotangent)
    torch.testing.assert_close(probe.grad, expected(made, x, cotangent))
    gradient = cotangent.t() @ x[:, made.perm.long()]
    norms = made.pattern.unit_norms_of_dense(gradient).to(other.grad)
    torch.testing.assert_close(other.grad.flatten(), norms.flatten(), rtol=1e-6, atol=1e-6)


def test_under_autocast_the_signal_is_float32():
    made = layer(Diag(), 0.75, torch.float32)
    probe = made.ask_for_signal()
    x = torch.randn(64, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = made(x)
    cotangent = torch.randn_like(y)
    y.backward(cotangent)
    assert probe.grad.dtype == torch.float32
    wanted = expected(made, x, cotangent).float()
    torch.testing.assert_close(probe.grad, wanted, rtol=0.02, atol=0.05)


def test_opcheck():
    x = torch.randn(2, 3, 6, dtype=torch.float64, requires_grad=True)
    y = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    perm, positions = torch.randperm(6).int(), torch.tensor([0, 2, 5], dtype=torch.int32)
    ops = torch.ops.padst
    torch.library.opcheck(ops.permutation_signal.default, (y.detach(), x.detach(), perm, positions))
    probe = torch.zeros(1, dtype=x.dtype).expand(11, 3).requires_grad_()
    torch.library.opcheck(ops.permutation_probe.default, (y, x, perm, positions, probe))


def test_other_kinds_have_no_probe():
    made = SparseLinear(16, 24, "diag", 0.75, permutation="random")
    assert made.permutation_probe is None and made.positions is None


@pytest.mark.parametrize("move", [lambda m: m.double(), lambda m: m.double().float()])
def test_moving_a_layer_keeps_what_it_looks_at(move):
    made = layer(Diag(), 0.75, torch.float32)
    before = made.positions.clone()
    move(made)
    assert torch.equal(made.positions, before)
    assert made.permutation_probe.dtype == made.values.dtype
    assert "positions" not in made.state_dict()
