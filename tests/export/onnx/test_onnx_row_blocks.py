"""Masks cut into row blocks."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from padst_fx.export.onnx.row_blocks import MOST_BATCHES, RowBlocks


def covered(blocks: RowBlocks, shape: tuple[int, int]) -> torch.Tensor:
    """The entries that blocks would compute with, one by one."""
    mask = torch.zeros(shape, dtype=torch.bool)
    for batch in blocks.batches:
        for row, reads in zip(batch.rows.tolist(), batch.reads.tolist(), strict=True):
            for read in reads:
                if read < shape[1] // blocks.stretch:
                    columns = slice(read * blocks.stretch, (read + 1) * blocks.stretch)
                    mask[row * blocks.tile : (row + 1) * blocks.tile, columns] = True
    return mask


def test_by_hand():
    mask = torch.zeros(4, 6, dtype=torch.bool)
    mask[0, 1] = mask[1, 4] = mask[3, 0] = True
    (one, two) = RowBlocks.of(mask, 2, 2).batches
    assert (one.rows.tolist(), one.reads.tolist()) == ([1], [[0]])
    assert (two.rows.tolist(), two.reads.tolist()) == ([0], [[0, 2]])


def test_blocks_that_read_nothing_are_a_batch_of_their_own():
    mask = torch.zeros(6, 4, dtype=torch.bool)
    mask[2, 3] = True
    (none, one) = RowBlocks.of(mask, 2, 2).batches
    assert (none.rows.tolist(), none.reads.shape) == ([0, 2], (2, 0))
    assert (one.rows.tolist(), one.reads.tolist()) == ([1], [[1]])


@given(st.integers(0, 2**32 - 1), st.sampled_from([1, 2, 4, 8]), st.sampled_from([1, 3]))
def test_every_entry_once_and_few_batches(seed, tile, stretch):
    generator = torch.Generator().manual_seed(seed)
    density = torch.rand((), generator=generator)
    mask = torch.rand(64, 12, generator=generator) < density**3
    blocks = RowBlocks.of(mask, tile, stretch)
    assert bool((covered(blocks, (64, 12)) | ~mask).all())
    assert 1 <= len(blocks.batches) <= MOST_BATCHES
    rows = torch.cat([batch.rows for batch in blocks.batches])
    assert rows.sort().values.tolist() == list(range(64 // tile))
    for batch in blocks.batches:
        real = batch.reads < 12 // stretch
        for reads, are_real in zip(batch.reads, real, strict=True):
            assert len(reads[are_real].unique()) == int(are_real.sum())


@pytest.mark.parametrize("tile", [2, 4])
def test_blocks_of_equal_width_are_one_batch(tile):
    mask = torch.eye(4, dtype=torch.bool).repeat_interleave(4, 0).repeat_interleave(4, 1)
    blocks = RowBlocks.of(mask, tile, 4)
    assert blocks.in_order
    assert blocks.gathered * tile == int(mask.sum())
