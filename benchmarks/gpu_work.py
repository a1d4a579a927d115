"""One product of one sparse layer on a GPU: its tensors, its call, its bytes and operations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any

import torch
from torch import Tensor

import padst_fx
from padst_fx.kernels.gather_gemm import triton_launch as gather_gemm
from padst_fx.kernels.shift import triton_launch as shift
from padst_fx.structures import NM, Structure
from padst_fx.structures.base import Pattern

PARTS = ("forward", "input_grad", "weight_grad")
STRUCTURES: dict[str, Structure] = {
    "Block(64)": padst_fx.Block(64),
    "Diag(width=64)": padst_fx.Diag(width=64),
    "Diag(width=16)": padst_fx.Diag(width=16),
    "Diag()": padst_fx.Diag(),
    "NM(1, 10, tile=16)": padst_fx.NM(1, 10, tile=16),
    "NM(1, 10)": padst_fx.NM(1, 10),
}
TWO_FOUR: dict[str, Structure] = {"NM(2, 4)": NM(2, 4)}
SPARSITY = 0.9


@dataclass(frozen=True)
class Work:
    """``part`` of a layer with ``structure``, [out, inputs], on ``tokens`` tokens."""

    structure: str
    part: str
    out: int
    inputs: int
    tokens: int
    dtype: torch.dtype = torch.bfloat16

    def pattern(self) -> Pattern:
        structure = (STRUCTURES | TWO_FOUR)[self.structure]
        sparsity = None if isinstance(structure, NM) else SPARSITY
        return structure.bind(self.out, self.inputs, sparsity)

    def tensors(self, device: str, seed: int = 0) -> dict[str, Tensor]:
        """Random tensors of the layer; on "meta" only their shapes."""
        pattern = self.pattern()
        generator = torch.Generator().manual_seed(seed)
        if device == "meta":
            index = torch.empty(pattern.index_shape, dtype=pattern.index_dtype, device="meta")
        else:
            index = pattern.index_from_units(pattern.random_units(generator)).to(device)
        shapes = {
            "x": (self.tokens, self.inputs),
            "grad": (self.tokens, self.out),
            "values": pattern.values_shape,
            "bias": (self.out,),
        }
        made = {name: self._random(shape, device, generator) for name, shape in shapes.items()}
        return {**made, "index": index, "perm": torch.empty(0, dtype=torch.int32, device=device)}

    def sets(self, tensors: dict[str, Tensor], count: int) -> list[dict[str, Tensor]]:
        """``count`` layers that share everything but the memory of their values."""
        return [{**tensors, "values": tensors["values"].clone()} for _ in range(count)]

    @property
    def layers(self) -> int:
        """So many that their weights, sparse too, do not stay in the second-level cache."""
        return 32 if self.tokens <= 64 else 4

    def _random(self, shape: tuple[int, ...], device: str, generator: torch.Generator) -> Tensor:
        if device == "meta":
            return torch.empty(shape, dtype=self.dtype, device="meta")
        return torch.randn(shape, generator=generator).to(device, self.dtype)

    def call(self, tensors: dict[str, Tensor]) -> Callable[[], Tensor]:
        """The launch function for this part on these tensors."""
        kernel = self.pattern().kernel
        module: Any = shift if kernel == "shift" else gather_gemm
        name = "shift_" + self.part if kernel == "shift" else f"{kernel}_{self.part}"
        return partial(getattr(module, name), *self.arguments(tensors))

    def arguments(self, t: dict[str, Tensor]) -> tuple[Any, ...]:
        """What the kernel modules' function for this part takes."""
        pattern = self.pattern()
        kernel = pattern.kernel
        window = pattern.m if hasattr(pattern, "m") else self.inputs
        scattered = kernel == "scatter_gemm"
        if self.part == "forward":
            size = window if kernel == "gather_gemm" else self.out
            return (t["x"], t["values"], t["index"], t["perm"], t["bias"], size, "none")
        if self.part == "input_grad":
            sizes = {"shift": (self.inputs,), "gather_gemm": (window, self.inputs)}.get(kernel, ())
            return (t["grad"], t["values"], t["index"], t["perm"], *sizes)
        if kernel == "shift":
            return (t["grad"], t["x"], t["index"], t["perm"])
        group = t["values"].shape[2]
        sizes = (group,) if scattered else (window, group)
        return (t["grad"], t["x"], t["index"], t["perm"], *sizes)

    @property
    def weights(self) -> int:
        return prod(self.pattern().values_shape)

    def operations(self) -> int:
        """A multiplication and an addition per weight and token."""
        return 2 * self.tokens * self.weights

    def bytes(self) -> int:
        """Weights, their index and both activations, each moved once."""
        pattern, size = self.pattern(), self.dtype.itemsize
        index = prod(pattern.index_shape) * pattern.index_dtype.itemsize
        return (self.weights + self.tokens * (self.out + self.inputs)) * size + index

    def dense_operations(self) -> int:
        return 2 * self.tokens * self.out * self.inputs

    def dense_bytes(self) -> int:
        matrices = self.out * self.inputs + self.tokens * (self.out + self.inputs)
        return matrices * self.dtype.itemsize
