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
        watched = [p for reference in self._watched if (p := reference()) is not None]
        average_gradients(watched, self.group)


def average_gradients(
    parameters: Sequence[nn.Parameter], group: dist.ProcessGroup | None
) -> None:
    """Average gradients over ranks, now; every rank has to ask.

    A rank without a gradient adds zero; where no rank has one it stays None. One reduction for
    all parameters of a dtype.
    """
    by_kind: dict[tuple[torch.dtype, torch.device], list[nn.Parameter]] = {}
    for parameter in parameters:
        by_kind.setdefault((parameter.dtype, parameter.device), []).append(parameter)
    for alike in by_kind.values():
        _average_alike(alike, group)


def _average_alike(parameters: Sequence[nn.Parameter], group: dist.ProcessGroup | None) -> None:
    lengths = [parameter.numel() for parameter in parameters]
    present = [parameter.grad is not None for parameter in parameters]
    parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    flags = parts[0].new_tensor([float(here) for here in present])
    flat = torch.cat([flags, *(part.detach().reshape(-1) for part in parts)])
    dist.all_reduce(flat, group=group)
    # Only a rank that lacks a gradient has to wait for the answer whether another has one.
    known = present if all(present) else flat[: len(parameters)].bool().tolist()
    averages = (flat[len(parameters) :] / world_size(group)).split(lengths)
    for parameter, somewhere, average in zip(parameters, known, averages, strict=True):
        if not somewhere:
            continue
        if parameter.grad is None:
            parameter.grad = torch.empty_like(parameter)
        parameter.grad.copy_(average.view_as(parameter))


def _at_the_end(call: Any) -> None:
    """Call it when the backward now running ends."""
    Variable._execution_engine.queue_callback(call)
