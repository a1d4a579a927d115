"""The matrix of a soft permutation: its start, projection, penalty and nearest permutation.

A soft permutation is a doubly stochastic matrix `M` `[n, n]` in place of the index `perm`:
`(M x)_j = sum_c M[j, c] x_c`, so row `j` says which feature position `j` reads (PA-DST,
arXiv:2510.14812; penalty and projection from AutoShuffleNet, arXiv:1901.08624).
"""

from __future__ import annotations

import torch
from torch import Tensor

from padst_fx.kernels.precision import accumulation_dtype

# What the start gives away from the diagonal, spread evenly over each row.
LEAK = 0.1
FLOOR = 1e-12


@torch.no_grad()
def near_identity_(matrix: Tensor) -> Tensor:
    """Fill with `(1 - LEAK) I + LEAK / n`, which is doubly stochastic; returns the matrix."""
    matrix.fill_(LEAK / len(matrix))
    matrix.diagonal().add_(1 - LEAK)
    return matrix


@torch.no_grad()
def project_(matrix: Tensor, iterations: int) -> Tensor:
    """Bring a matrix near the doubly stochastic ones, in place: clamp at zero, then Sinkhorn.

    `iterations` times rows and then columns are scaled to sum to one, in float32 at least; the
    scales are found by products with vectors and applied in one pass. The clamp stops just above
    zero, so that a row or column which lost everything starts over as uniform.
    """
    precision = torch.finfo(matrix.dtype)
    matrix.clamp_(min=max(FLOOR, precision.smallest_normal * precision.eps))
    wide = matrix.to(accumulation_dtype(matrix.dtype))
    columns = wide.new_ones(len(wide))
    rows = columns
    for _ in range(iterations):
        rows = 1 / (wide @ columns)
        columns = 1 / (wide.t() @ rows)
    return matrix.copy_(wide * rows[:, None] * columns)


def permutation_penalty(matrix: Tensor) -> Tensor:
    """`P(M) = sum_rows(|row|_1 - |row|_2) + sum_cols(|col|_1 - |col|_2)`, a scalar.

    Of the doubly stochastic matrices it is zero on permutations and positive on all others
    (AutoShuffleNet, arXiv:1901.08624, theorem 1).
    """
    wide = matrix.to(accumulation_dtype(matrix.dtype))
    norms = sum(torch.linalg.vector_norm(wide, dim=dim).sum() for dim in (0, 1))
    return 2 * wide.abs().sum() - norms


@torch.no_grad()
def nearest_permutation(matrix: Tensor) -> Tensor:
    """The permutation `perm` of largest `sum_j M[j, perm[j]]`, int32 `[n]` on the CPU.

    By linear assignment (scipy), which gives a permutation whatever the matrix, where the
    largest entries of rows may repeat a column. Raises `ValueError` for entries not finite.
    """
    from scipy.optimize import linear_sum_assignment

    if not torch.isfinite(matrix).all():
        raise ValueError("the matrix has entries that are not finite")
    _, columns = linear_sum_assignment(matrix.double().cpu().numpy(), maximize=True)
    return torch.from_numpy(columns).to(torch.int32)
