"""Gradients of parameters that the model's wrapper may not know, averaged over ranks."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.variable import Variable
from torch.utils.hooks import RemovableHandle

from padst_fx.dst.agreement import world_size


class GradientAverage:
    """Averages the gradients of the watched parameters at the end of every backward.

    So a loss scaler that looks for overflows and a clipping of norms find the same gradients on
    every rank, as they do with those that DistributedDataParallel averages. At the optimizer's
    step it would be too late: a scaler takes that step only on ranks without an overflow, and
    these would wait for the others for ever.

    A backward has to reach watched parameters on all ranks or on none. One that is reached on
    some ranks only counts as zero on the others.
    """

    def __init__(self, group: dist.ProcessGroup | None) -> None:
        self.group = group
        self._watched: list[weakref.ref[nn.Parameter]] = []
        self._handles: list[RemovableHandle] = []
        self._backward = -1

    def __getstate__(self) -> dict[str, Any]:
        """A copy watches nothing; its manager tells it what to watch."""
        return {**self.__dict__, "_watched": [], "_handles": []}

    def watch(self, parameters: Sequence[nn.Parameter]) -> None:
        """Average these from now on, and no others; nothing where there is one process."""
        if world_size(self.group) == 1:
            return
        present = [reference() for reference in self._watched]
        if len(present) == len(parameters) and all(
            one is other for one, other in zip(present, parameters, strict=True)
        ):
            return
        self.stop()
        # Weak, so that hooks do not outlive who put them there.
        this = weakref.ref(self)

        def arrived(_: Tensor) -> None:
            if (average := this()) is not None:
                average._arrived()

        self._watched = [weakref.ref(parameter) for parameter in parameters]
        self._handles = [p.register_post_accumulate_grad_hook(arrived) for p in parameters]

    def stop(self) -> None:
        """Watch nothing any more."""
        for handle in self._handles:
            handle.remove()
        self._watched, self._handles = [], []

    def _arrived(self) -> None:
        """Ask for the average once in a backward."""
        backward = torch._C._current_graph_task_id()
        if backward != self._backward:
            self._backward = backward
            # Behind what DistributedDataParallel asks for until backward ends, if it knows them.
            _at_the_end(lambda: _at_the_end(self._average))

    @torch.no_grad()
    def _average(self) -> None:
        """Of those that have a gradient on any rank, in the same order on every rank."""
        parameters = [p for reference in self._watched if (p := reference()) is not None]
        size = world_size(self.group)
        reached = torch.tensor(
            [parameter.grad is not None for parameter in parameters],
            dtype=torch.int32,
            device=parameters[0].device,
        )
        dist.all_reduce(reached, group=self.group)
        for parameter, ranks in zip(parameters, reached.tolist(), strict=True):
            if ranks:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                dist.all_reduce(parameter.grad, group=self.group)
                parameter.grad /= size


def _at_the_end(call: Any) -> None:
    """Call it when the backward now running ends."""
    Variable._execution_engine.queue_callback(call)
