"""The forward of 2:4 weights through torch's semi-structured matmul (cuSPARSELt or CUTLASS)."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any
from weakref import ref

import torch
import torch.nn.functional as F
from torch import Tensor

from padst_fx.kernels import activation as activations
from padst_fx.kernels import triton_layout
from padst_fx.kernels.tiles.calculated import SMALLEST_DOT
from padst_fx.kernels.tiles.problem import Problem
from padst_fx.kernels.tiles.table import lookup
from padst_fx.kernels.two_four.layout import dense_weight, fits

OLDEST_CAPABILITY = (8, 0)


@dataclass(frozen=True)
class Packed:
    """A packed weight and what it was packed from."""

    values: ref[Tensor]
    index: ref[Tensor]
    state: tuple[object, ...]
    weight: Any


class PackedWeights:
    """Weights packed once per change of their values or their index; freed with the values."""

    def __init__(self, pack: Callable[[Tensor, Tensor], Any]) -> None:
        self._pack = pack
        self._kept: dict[int, Packed] = {}

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, values: Tensor, index: Tensor) -> Any:
        """The packed weight, packed anew if either tensor was written to since."""
        if values.is_inference() or index.is_inference():
            return self._pack(values, index)
        key, state = id(values), (_state(values), _state(index))
        found = self._kept.get(key)
        same = found is not None and found.values() is values and found.index() is index
        if found is None or not same or found.state != state:
            watched = ref(values, lambda _: self._kept.pop(key, None))
            found = Packed(watched, ref(index), state, self._pack(values, index))
            self._kept[key] = found
        return found.weight


def _state(tensor: Tensor) -> tuple[object, ...]:
    """What changes when a tensor is written to or gets other storage."""
    return tensor._version, tensor.data_ptr(), tensor.dtype, tensor.device


def _pack(values: Tensor, index: Tensor) -> Any:
    with warnings.catch_warnings(), torch.no_grad():
        warnings.filterwarnings("ignore", message=".*SparseSemiStructuredTensor.*")
        return torch.sparse.to_sparse_semi_structured(dense_weight(values.detach(), index))


PACKED = PackedWeights(_pack)
_MET: set[tuple[object, ...]] = set()
_MOST_MET = 10_000


@cache
def _has_library(device: torch.device) -> bool:
    return torch.cuda.get_device_capability(device) >= OLDEST_CAPABILITY


def is_faster(x: Tensor, values: Tensor) -> bool:
    """Whether the table sends this product to the library.

    Never while a CUDA graph is captured: a replay would go on with weights packed before a change.
    """
    if not x.is_cuda or values.shape[3] >= SMALLEST_DOT or not fits(values, x.shape[1]):
        return False
    sizes = (values.shape[0] * values.shape[3], x.shape[1])
    chosen = lookup(x.device, Problem("two_four", x.dtype, x.shape[0], sizes))["LIBRARY"]
    capturing = torch.cuda.is_current_stream_capturing()
    return bool(chosen) and not capturing and _has_library(x.device)


def is_new(*call: object) -> bool:
    """Whether such a call was not made before; the next one like it will not be new.

    Calls are remembered up to a number, then all are forgotten: asking once more costs little.
    """
    new = call not in _MET
    if len(_MET) >= _MOST_MET:
        _MET.clear()
    _MET.add(call)
    return new


def forward(
    x: Tensor, values: Tensor, index: Tensor, perm: Tensor, bias: Tensor, activation: str
) -> Tensor:
    """``act(x[:, perm] @ S.T + bias)``: x [M, I], values [R, E, 1, V], index [R, E] -> [M, R*V]."""
    weight = PACKED.get(values, index)
    x = triton_layout.permuted_rows(x, perm if perm.numel() else None)
    with torch.no_grad():
        y = F.linear(x, weight, bias if bias.numel() else None)
    return activations.apply(activation, y)
