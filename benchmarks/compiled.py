"""Functions compiled each for itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def compiled(call: Callable[..., Any], backend: str = "inductor") -> Callable[..., Any]:
    """`call` under `torch.compile`, one graph, with a code object of its own.

    Dynamo keeps what it compiled on code objects. Several models that share a `forward` would go
    through each other's guards at every call, and fall back to eager after a few of them.
    """

    def own(*args: Any) -> Any:
        return call(*args)

    own.__code__ = own.__code__.replace(co_name=f"own_{id(own)}")
    return torch.compile(own, backend=backend, fullgraph=True, dynamic=False)
