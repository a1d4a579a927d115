"""Growth scores in plain torch: the dense gradient exists only as a chunk of rows.

A chunk holds a sixth of it or ``WORKSPACE`` elements, or one row of units where that is more:
GEMMs of fewer rows would spend their time on packing ``x``.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from padst_fx.kernels.permutation import permuted
from padst_fx.kernels.precision import accumulation_dtype

WORKSPACE = 1 << 20


def _square_chunks(
    grad: Tensor, x: Tensor, perm: Tensor, rows: int
) -> Iterator[tuple[int, Tensor]]:
    """Squares of the gradient in chunks of a multiple of ``rows``: (first row, [chunk, I])."""
    wide = accumulation_dtype(grad.dtype)
    read = permuted(x, perm).to(wide)
    elements = min(WORKSPACE, grad.shape[1] * x.shape[1] // 6)
    step = max(1, elements // (rows * x.shape[1])) * rows
    for start in range(0, grad.shape[1], step):
        yield start, (grad[:, start : start + step].to(wide).t() @ read).square_()


def _block_sums(squares: Tensor, size: int) -> Tensor:
    """Sums over blocks of [chunk, I]: [chunk / size, I / size]."""
    if size == 1:
        return squares
    return squares.view(-1, size, squares.shape[1] // size, size).sum((1, 3))


def _diagonal_sums(matrix: Tensor) -> Tensor:
    """Sums of ``matrix`` [R, C] over column - row = -R .. C - 1: [R + C]."""
    rows, columns = matrix.shape
    padded = torch.nn.functional.pad(matrix, (rows, rows))
    # One step further in memory per row: a diagonal becomes a column.
    return padded.as_strided((rows, rows + columns), (padded.shape[1] + 1, 1)).sum(0)


def diag_growth_score(grad: Tensor, x: Tensor, perm: Tensor, width: int, run: int) -> Tensor:
    """The gradient's norm over every run of block diagonals: [max(O, I) / width / run]."""
    rows, columns = grad.shape[1] // width, x.shape[1] // width
    count = max(rows, columns)
    total = grad.new_zeros(count, dtype=accumulation_dtype(grad.dtype))
    for start, squares in _square_chunks(grad, x, perm, width):
        sums = _diagonal_sums(_block_sums(squares, width))
        first = (start + squares.shape[0]) // width
        distance = torch.arange(sums.shape[0], device=x.device) - first
        total.index_add_(0, (-distance if rows >= columns else distance) % count, sums)
    return total.view(-1, run).sum(1).sqrt()


def block_growth_score(grad: Tensor, x: Tensor, perm: Tensor, size: int) -> Tensor:
    """The Frobenius norm of every block of the gradient: [O / size, I / size]."""
    chunks = [_block_sums(squares, size) for _, squares in _square_chunks(grad, x, perm, size)]
    return torch.cat(chunks).sqrt()


def nm_growth_score(grad: Tensor, x: Tensor, index: Tensor, perm: Tensor, n: int, m: int) -> Tensor:
    """The best inactive slots of every group: [2, R, ceil(I / m), min(n, m - n)].

    A unit's score is the gradient's norm over the rows of the tile; [0] holds scores, descending,
    [1] their slots, ties to the smaller slot. A NaN counts as infinite. Where the last window is
    short of inactive slots, the score is -1 and the slot 0.
    """
    row_blocks, windows = index.shape[0], -(-x.shape[1] // m)
    beyond = windows * m - x.shape[1]
    tile, keep = grad.shape[1] // row_blocks, min(n, m - n)
    wide = accumulation_dtype(grad.dtype)
    result = grad.new_empty(2, row_blocks, windows, keep, dtype=wide)
    for start, squares in _square_chunks(grad, x, perm, tile):
        blocks = slice(start // tile, (start + squares.shape[0]) // tile)
        whole = torch.nn.functional.pad(squares, (0, beyond))
        scores = whole.view(-1, tile, windows, m).sum(1).sqrt_()
        scores.masked_fill_(scores.isnan(), torch.inf)
        scores[:, -1, m - beyond :] = -torch.inf
        scores.scatter_(2, index[blocks].long().view(-1, windows, n), -torch.inf)
        for place in range(keep):
            # Of equal scores `argmax` takes the first.
            slot = scores.argmax(dim=2, keepdim=True)
            best = scores.gather(2, slot)
            missing = best == -torch.inf
            result[0, blocks, :, place : place + 1] = best.masked_fill(missing, -1)
            result[1, blocks, :, place : place + 1] = slot.masked_fill(missing, 0)
            scores.scatter_(2, slot, -torch.inf)
    return result


def weight_growth_score(grad: Tensor, x: Tensor, perm: Tensor) -> Tensor:
    """The magnitude of every entry of the gradient, dense by definition: [O, I]."""
    wide = accumulation_dtype(grad.dtype)
    return (grad.to(wide).t() @ permuted(x, perm).to(wide)).abs_()
