"""Integer arithmetic for launch grids and tiles."""

from __future__ import annotations


def ceil_div(amount: int, step: int) -> int:
    """The number of steps that cover ``amount``."""
    return -(-amount // step)


def power_of_two(amount: int) -> int:
    """The smallest power of two that is at least ``amount``, and at least 1."""
    return 1 << max(0, amount - 1).bit_length()
