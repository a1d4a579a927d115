"""The dense gradient as a growth score: its op, and the norms that the kernels take."""

from __future__ import annotations

import pytest
import torch

from padst_fx.structures import NM, Block, Diag, Unstructured
from padst_fx.structures.dense_gradient import DenseGradient

PATTERNS = [
    Diag().bind(6, 10, 0.7),
    Diag(run=2).bind(10, 6, 0.5),
    Diag(width=2).bind(10, 6, 0.5),
    Block(2).bind(6, 8, 0.5),
    NM(2, 4, tile=2).bind(6, 10, None),
    Unstructured().bind(6, 10, 0.5),
]


def scoring_step(pattern, scorer, dtype=torch.float64):
    """A backward of a linear map by ones: the probe's gradient, and the operands."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, pattern.in_features, generator=generator, dtype=torch.float64).to(dtype)
    y = torch.randn(2, 3, pattern.out_features, generator=generator, dtype=torch.float64).to(dtype)
    index = pattern.index_from_units(pattern.random_units(generator))
    perm = torch.randperm(pattern.in_features, generator=generator, dtype=torch.int32)
    probe = torch.zeros(1, dtype=torch.float64).expand(scorer.probe_shape).requires_grad_()
    scorer.probe(y.requires_grad_(), x, index, perm, probe).backward(y.detach())
    return probe.grad, x, y.detach(), index, perm


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_it_is_the_gradient_of_a_dense_weight(pattern):
    found, x, y, _, perm = scoring_step(pattern, DenseGradient(pattern))
    expected = torch.einsum("abo,abi->oi", y, x[..., perm.long()])
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_its_norms_are_the_scores_of_the_kernels(pattern):
    """Of every candidate that the kernels score; those that do not exist are marked."""
    scorer = DenseGradient(pattern)
    norms, ids = scorer.growth_candidates(scoring_step(pattern, scorer)[0])
    scores, candidates = pattern.growth_candidates(scoring_step(pattern, pattern)[0])
    scored = scores >= 0
    same = norms.gather(1, candidates.clamp(min=0))
    found, expected = same[scored].double(), scores[scored].double()
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)  # norms are in float32
    assert torch.equal(norms < 0, ~pattern.available().expand_as(norms))
    assert torch.equal(ids, torch.arange(pattern.candidates).expand_as(norms))


def test_opcheck():
    pattern = PATTERNS[0]
    _, x, y, _, perm = scoring_step(pattern, DenseGradient(pattern))
    torch.library.opcheck(torch.ops.padst.dense_gradient, (y, x, perm))
    probe = torch.zeros(pattern.out_features, pattern.in_features, dtype=torch.float64)
    arguments = (y.requires_grad_(), x, perm, probe.requires_grad_())
    torch.library.opcheck(torch.ops.padst.dense_probe, arguments)
    absent = torch.empty(0, dtype=torch.int32)
    torch.library.opcheck(torch.ops.padst.dense_gradient, (y.detach(), x, absent))


def test_reduced_precision_is_accumulated_in_float():
    pattern = PATTERNS[0]
    found, x, y, _, perm = scoring_step(pattern, DenseGradient(pattern), torch.bfloat16)
    expected = torch.einsum("abo,abi->oi", y.double(), x[..., perm.long()].double())
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
