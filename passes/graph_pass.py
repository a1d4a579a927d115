"""What a pass is."""

from __future__ import annotations

from typing import ClassVar, Protocol

from torch.fx import Graph


class GraphPass(Protocol):
    """One rewrite of a functional aten graph, forward or backward.

    `name` is the pass's name in logs, counts and dumps and the key of the backend option that
    turns it on or off. Make passes frozen dataclasses: `repr` is part of the compile caches' key,
    so it has to show every parameter and no address.
    """

    name: ClassVar[str]

    def apply(self, graph: Graph) -> int:
        """Rewrite `graph` in place and return the number of rewrites.

        New nodes carry `meta["val"]` and `meta["stack_trace"]`; `PassManager` removes what is
        left unused and lints.
        """
        ...
