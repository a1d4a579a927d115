"""Dense weights that are mostly zeros (`Unstructured`), stored as their other entries."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

# Tensors below this many entries are not worth the nodes that would make them.
SMALLEST = 1024
LARGEST_GAP = 255

Fingerprint = tuple[int, float, float]
# Of masked weights: the layer and the shape `[out, in]`.
Names = Mapping[Fingerprint, tuple[str, tuple[int, ...]]]


@dataclass(frozen=True)
class Gaps:
    """Entries of a tensor in row-major order, and how far each lies behind the one before it.

    A gap that 8 bits cannot hold is bridged by entries that are zero.
    """

    values: NDArray
    gaps: NDArray[np.uint8]
    shape: tuple[int, ...]

    @classmethod
    def of(cls, array: NDArray) -> Gaps:
        """The non-zero entries of an array."""
        flat = array.reshape(-1)
        places = np.flatnonzero(flat)
        gaps = np.diff(places, prepend=-1)
        bridges = (gaps - 1) // LARGEST_GAP
        ends = np.arange(len(places)) + np.cumsum(bridges)
        values = np.zeros(len(places) + int(bridges.sum()), flat.dtype)
        values[ends] = flat[places]
        steps = np.full(len(values), LARGEST_GAP, np.uint8)
        steps[ends] = gaps - LARGEST_GAP * bridges
        return cls(values, steps, array.shape)

    @property
    def nbytes(self) -> int:
        """What they take in a file."""
        return self.values.nbytes + self.gaps.nbytes


def is_masked(value: ir.Value) -> bool:
    """Whether an initializer takes less room as its non-zero entries."""
    tensor = value.const_value
    if tensor is None or not tensor.dtype.is_floating_point():
        return False
    if len(tensor.shape) < 2 or tensor.size < SMALLEST:
        return False
    array = tensor.numpy()
    return bool(np.count_nonzero(array) * (array.itemsize + 1) < array.nbytes)


def fingerprint(array: NDArray) -> Fingerprint:
    """What tells a weight from others, transposed or not: exporters do that to some of them."""
    wide = array.astype(np.float32)
    return int(np.count_nonzero(wide)), float(wide.max()), float(wide.min())
