"""The dense modules a projection comes from: how their weight lies and how to rebuild them."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from torch import Tensor, nn


def hugging_face_conv1d() -> type[nn.Module] | None:
    """The `Conv1D` class of transformers, if that package is loaded at all."""
    module = sys.modules.get("transformers.pytorch_utils")
    return getattr(module, "Conv1D", None)


@dataclass(frozen=True)
class DenseForm:
    """A dense projection's class: `nn.Linear` (or a subclass), or Hugging Face's `Conv1D`."""

    origin: type[nn.Module]

    @classmethod
    def of(cls, module: nn.Module) -> DenseForm:
        """The form of a dense module, or a `TypeError` that names what is supported."""
        conv1d = hugging_face_conv1d()
        if isinstance(module, nn.Linear) or (conv1d is not None and isinstance(module, conv1d)):
            return cls(type(module))
        raise TypeError(
            f"{type(module).__name__} is not a dense projection; "
            "supported: nn.Linear and Hugging Face's Conv1D"
        )

    @property
    def transposed(self) -> bool:
        """Whether the module keeps its weight as `[in, out]` (`Conv1D`)."""
        return not issubclass(self.origin, nn.Linear)

    def weight(self, module: nn.Module) -> Tensor:
        """The module's weight as `[out, in]`."""
        weight = module.weight
        assert isinstance(weight, Tensor)
        return weight.t() if self.transposed else weight

    def bias(self, module: nn.Module) -> Tensor | None:
        """The module's bias, None where it has none."""
        bias = module.bias
        assert bias is None or isinstance(bias, Tensor)
        return bias

    def build(self, weight: Tensor, bias: Tensor | None) -> nn.Module:
        """A module of the original class with this `[out, in]` weight and bias (copied)."""
        out_features, in_features = weight.shape
        if self.transposed:
            dense = self.origin(out_features, in_features)
        else:
            dense = nn.Linear(in_features, out_features, bias=bias is not None, device="meta")
            dense.__class__ = self.origin  # type: ignore[assignment]
        stored = weight.t() if self.transposed else weight
        dense.weight = nn.Parameter(stored.contiguous())
        if bias is not None:
            dense.bias = nn.Parameter(bias.detach().clone())
        return dense
