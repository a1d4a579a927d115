"""Growth scores through the whole dense gradient: slow, obvious."""

from __future__ import annotations

import torch
from torch import Tensor

from padst_fx.kernels.permutation import permuted
from padst_fx.kernels.precision import accumulation_dtype


def dense_gradient(grad: Tensor, x: Tensor, perm: Tensor) -> Tensor:
    """``grad.T @ x[:, perm]``, [O, I]: the gradient of a dense weight in S's coordinates."""
    wide = accumulation_dtype(grad.dtype)
    return grad.to(wide).t() @ permuted(x, perm).to(wide)


def _block_squares(grad: Tensor, x: Tensor, perm: Tensor, size: int) -> Tensor:
    squares = dense_gradient(grad, x, perm).square()
    blocks = squares.view(grad.shape[1] // size, size, x.shape[1] // size, size)
    return blocks.sum((1, 3))


def diag_growth_score(grad: Tensor, x: Tensor, perm: Tensor, width: int, run: int) -> Tensor:
    """The gradient's norm over every run of block diagonals: [max(O, I) / width / run]."""
    blocks = _block_squares(grad, x, perm, width)
    rows, columns = blocks.shape
    count = max(rows, columns)
    row, column = torch.meshgrid(
        torch.arange(rows, device=x.device), torch.arange(columns, device=x.device), indexing="ij"
    )
    offset = (row - column if rows >= columns else column - row) % count
    squares = blocks.new_zeros(count).index_add_(0, offset.flatten(), blocks.flatten())
    return squares.view(-1, run).sum(1).sqrt()


def block_growth_score(grad: Tensor, x: Tensor, perm: Tensor, size: int) -> Tensor:
    """The Frobenius norm of every block of the gradient: [O / size, I / size]."""
    return _block_squares(grad, x, perm, size).sqrt()


def nm_growth_score(grad: Tensor, x: Tensor, index: Tensor, perm: Tensor, n: int, m: int) -> Tensor:
    """The best inactive slots of every group: [2, R, ceil(I / m), min(n, m - n)].

    A unit's score is the gradient's norm over the rows of the tile; [0] holds scores, descending,
    [1] their slots, ties to the smaller slot. A NaN counts as infinite. Where the last window is
    short of inactive slots, the score is -1 and the slot 0.
    """
    gradient = dense_gradient(grad, x, perm)
    row_blocks, windows = index.shape[0], -(-x.shape[1] // m)
    squares = gradient.new_full((gradient.shape[0], windows * m), -torch.inf)
    squares[:, : x.shape[1]] = gradient.square()
    energy = squares.view(row_blocks, -1, windows, m).sum(1)
    scores = energy.clamp(min=0).sqrt().nan_to_num(nan=torch.inf, posinf=torch.inf)
    scores[energy == -torch.inf] = -torch.inf
    scores.scatter_(2, index.long().view(row_blocks, windows, n), -torch.inf)
    ordered, slots = scores.sort(dim=2, descending=True, stable=True)
    keep = min(n, m - n)
    missing = ordered[..., :keep] == -torch.inf
    best = ordered[..., :keep].masked_fill(missing, -1)
    return torch.stack([best, slots[..., :keep].masked_fill(missing, 0).to(best.dtype)])


def weight_growth_score(grad: Tensor, x: Tensor, perm: Tensor) -> Tensor:
    """The magnitude of every entry of the gradient: [O, I]."""
    return dense_gradient(grad, x, perm).abs()
