"""The tiles that are tried for a problem when a device is measured."""

from __future__ import annotations

import itertools
import math

from padst_fx.kernels.tiles.calculated import calculated
from padst_fx.kernels.tiles.problem import Problem, Tiles

AXES: dict[str, tuple[int, ...]] = {
    "BLOCK_M": (1, 2, 4, 8, 16, 32, 64, 128, 256),
    "BLOCK_F": (8, 16, 32, 64, 128),
    "BLOCK_K": (1, 2, 4, 8, 16, 32, 64, 128, 256),
    "BLOCK_V": (16, 32, 64, 128, 256),
    "BLOCK_C": (16, 32, 64, 128),
    "BLOCK_N": (16, 32, 64, 128, 256, 512),
    "BLOCK_S": (16, 32, 64, 128, 256),
    "BLOCK_L": (16, 32, 64, 128, 256),
    "WINDOWS": (1, 2, 4, 8, 16, 32, 64),
    "UNROLL": (1, 2, 4, 8),
    "num_warps": (1, 2, 4, 8, 16),
    "num_stages": (2, 3, 5, 7, 9),
}
# One way or the other, where the rest are sizes.
CHOICES = {"LIBRARY", "DENSE"}
SUMMED = {
    "gather_dot": "BLOCK_C",
    "scatter_dot": "BLOCK_C",
    "outer_dot": "BLOCK_M",
    "outer_windows": "BLOCK_M",
    "shift_weight_grad_dot": "BLOCK_M",
}
SMALLEST_DOT_TOKENS = 16
MOST_SUMS_PER_THREAD = 128


def candidates(problem: Problem) -> list[Tiles]:
    """The calculated tile first, then those one step away from it on one or two axes."""
    centre = calculated(problem)
    if centre.keys() <= CHOICES:
        (name,) = centre
        return [centre, {name: 1 - centre[name]}]
    found = [centre]
    steps = [
        (name, other) for name in AXES if name in centre for other in _neighbours(name, centre)
    ]
    found += [{**centre, name: other} for name, other in steps]
    for (first, one), (second, two) in itertools.combinations(steps, 2):
        if first != second:
            found.append({**centre, first: one, second: two})
    return [found[0], *(tiles for tiles in found[1:] if _allowed(problem, tiles))]


def _neighbours(name: str, tiles: Tiles) -> list[int]:
    ladder = AXES[name]
    at = ladder.index(tiles[name])
    return [ladder[i] for i in (at - 1, at + 1) if 0 <= i < len(ladder)]


def _allowed(problem: Problem, tiles: Tiles) -> bool:
    """Whether a tile fits the kernel: dots of 16 tokens and more, sums that registers hold."""
    dots = "num_stages" in tiles
    if dots and tiles["BLOCK_M"] < SMALLEST_DOT_TOKENS:
        return False
    if not dots and problem.tokens <= tiles["BLOCK_M"] // 2:
        return False
    return sums_per_thread(problem.kernel, tiles) <= MOST_SUMS_PER_THREAD


def sums_per_thread(kernel: str, tiles: Tiles) -> float:
    """Accumulators that a thread holds: the product of the blocks that are not summed over."""
    blocks = (
        size
        for name, size in tiles.items()
        if name not in (SUMMED.get(kernel), "num_warps", "num_stages", "UNROLL")
    )
    return math.prod(blocks) / (32 * tiles["num_warps"])
