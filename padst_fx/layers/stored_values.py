"""What a sparse layer answers to code that asks for its `weight`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


class StoredValues(Tensor):
    """A layer's values under the name `weight`.

    Being a subclass with `__torch_function__` it bars torch's fused encoder paths, which would
    read the values as a dense weight. Raises `TypeError` where a dense weight is multiplied.
    """

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func in (F.linear, F.multi_head_attention_forward):
            raise TypeError(
                "SparseLinear.weight has the stored values, not a dense weight; "
                "call the layer, or use dense_weight()"
            )
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))
