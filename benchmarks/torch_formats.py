"""torch's own sparse formats, made from a dense weight."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks.structures import SPARSITY
from padst_fx import Block, Structure, Unstructured

BLOCK = 16


def pruned(weight: Tensor, structure: Structure) -> Tensor:
    """The weight with all but the strongest units of a structure set to zero."""
    out, inputs = weight.shape
    pattern = structure.bind(out, inputs, SPARSITY)
    index = pattern.index_from_units(pattern.strongest_units(pattern.unit_norms_of_dense(weight)))
    return pattern.dense(pattern.values_from_dense(weight, index), index)


def csr(weight: Tensor) -> Tensor:
    """Compressed rows of single weights, 90 % sparse."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*beta state", UserWarning)
        return pruned(weight, Unstructured()).to_sparse_csr()


def bsr(weight: Tensor) -> Tensor:
    """Compressed rows of 16 x 16 blocks, 90 % sparse."""
    return pruned(weight, Block(BLOCK)).to_sparse_bsr((BLOCK, BLOCK))


def semi_structured(weight: Tensor) -> Tensor:
    """2:4, which is 50 % sparse: two of four weights are all that the format can drop."""
    from torch.sparse import to_sparse_semi_structured

    quads = weight.unflatten(1, (-1, 4))
    kept = quads.abs().argsort(dim=2, descending=True)[..., :2]
    mask = torch.zeros_like(quads, dtype=torch.bool).scatter_(2, kept, True)
    return to_sparse_semi_structured((quads * mask).flatten(1))


FORMATS: dict[str, Callable[[Tensor], Tensor]] = {
    "torch CSR": csr,
    "torch BSR(16)": bsr,
    "torch 2:4": semi_structured,
}


def prepare(
    make: Callable[[Tensor], Tensor], dense: nn.Linear, x: Tensor
) -> tuple[Tensor, Callable[[], Tensor]]:
    """The weight a format keeps, as a dense matrix, and a call of `x @ weight.t() + bias`.

    The sparse matrix stands on the left, where torch is up to six times as fast as through
    `F.linear`; the result is a transposed view. Raises what torch raises where it does not run.
    """
    weight = make(dense.weight.detach())
    bias = dense.bias.detach()
    return weight.to_dense(), partial(_from_the_left, weight, bias, x)


def _from_the_left(weight: Tensor, bias: Tensor, x: Tensor) -> Tensor:
    return torch.addmm(bias[:, None], weight, x.t()).t()
