"""Which projection each parameter of a model is the weight of, and which module reads it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import fx, nn

from padst_fx.projections.evidence import Ledger
from padst_fx.projections.inventory import Candidate, join
from padst_fx.projections.projection import Projection


class Weights:
    """The owners of a model's parameters, by each parameter's first name."""

    def __init__(self, model: nn.Module, found: list[Candidate], ledger: Ledger) -> None:
        self.model = model
        self.ledger = ledger
        self.names: dict[int, str] = {}
        self.holders: dict[str, set[int]] = {}
        self.flows: dict[str, dict[int, str]] = {}
        self.raw_shapes: dict[str, tuple[int, int]] = {}
        self.raw_readers: dict[str, str] = {}
        self._name_tensors()
        self._assign_flows(found)

    def _name_tensors(self) -> None:
        """Each parameter's and buffer's first name, and the modules that hold it."""
        for prefix, module in self.model.named_modules():
            for key, tensor in _held(module):
                name = self.names.setdefault(id(tensor), join(prefix, key))
                self.holders.setdefault(name, set()).add(id(module))

    def _assign_flows(self, found: list[Candidate]) -> None:
        modules = {id(candidate.module) for candidate in found}
        for candidate in found:
            for tensor in _weights(candidate, modules):
                by_module = self.flows.setdefault(self.names[id(tensor)], {})
                by_module[id(candidate.module)] = candidate.flow

    def name(self, target: str) -> str | None:
        """The first name of the parameter or weight buffer at `target`, None for another buffer."""
        tensor = attribute(self.model, target)
        name = self.names.get(id(tensor))
        return name if name in self.flows or isinstance(tensor, nn.Parameter) else None

    def owners(self, parameters: Iterable[str]) -> set[str]:
        """The modules' projections that these are weights of."""
        return {flow for name in parameters for flow in self.flows.get(name, {}).values()}

    def flows_of(
        self, node: fx.Node, parameters: Iterable[str], shape: tuple[int, int]
    ) -> set[str]:
        """The projections this weight belongs to; a parameter of no known module is one itself."""
        reader = self._reader(node)
        names: set[str] = set()
        for parameter in parameters:
            by_module = self.flows.get(parameter)
            if by_module is None:
                if attribute(self.model, parameter).dim() > 1:
                    self.raw_shapes.setdefault(parameter, shape)
                    self.raw_readers.setdefault(parameter, self._describe(reader))
                    names.add(parameter)
                continue
            name = by_module.get(id(reader), next(iter(by_module.values())))
            names.add(name)
            self._note_reader(name, parameter, reader)
        return names

    def note_readers(self, node: fx.Node, parameters: Iterable[str]) -> None:
        """Weights that an operator other than a matmul reads."""
        for parameter in parameters:
            reader = self._reader(node)
            for name in set(self.flows.get(parameter, {}).values()):
                self._note_reader(name, parameter, reader)

    def _note_reader(self, name: str, parameter: str, reader: nn.Module | None) -> None:
        allowed = {*self.holders[parameter], *self.flows[parameter]}
        if reader is not None and id(reader) not in allowed:
            self.ledger[name].readers.append(self._describe(reader))

    def _describe(self, module: nn.Module | None) -> str:
        path = next((name for name, other in self.model.named_modules() if other is module), "")
        kind = type(module).__name__
        return f"{path} ({kind})" if path else f"the model itself ({kind})"

    def _reader(self, node: fx.Node) -> nn.Module | None:
        """The innermost module whose forward the node was traced in."""
        stack = node.meta.get("nn_module_stack")
        if not stack:
            return None
        path = re.sub(r"@\d+", "", next(reversed(stack.values()))[0])
        try:
            return self.model.get_submodule(path.partition(".")[2])
        except AttributeError:
            return None

    def raw_projections(self) -> list[Projection]:
        """The parameters that a matmul reads and that belong to no known module."""
        return [
            Projection(
                name=name,
                role=self.ledger.role(name),
                shape=shape,
                owner=name.rpartition(".")[0],
                kind="linear",
                unsupported=f"it is a bare parameter, multiplied in {self.raw_readers[name]}",
            )
            for name, shape in self.raw_shapes.items()
        ]


def _held(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    for tensors in (module._parameters, module._buffers):
        for key, tensor in tensors.items():
            if tensor is not None:
                yield key, tensor


def _weights(candidate: Candidate, modules: set[int]) -> Iterator[torch.Tensor]:
    """The tensors that the candidate's weight is, or is computed from, but no other candidate's."""
    module, slot = candidate.module, candidate.flow.rpartition(".")[2]
    if isinstance(module, nn.MultiheadAttention):
        if slot == "out_proj":
            module = module.out_proj
        else:
            yield from (tensor for key, tensor in _held(module) if key == f"{slot}_weight")
            return
    for key, tensor in _held(module):
        if "bias" not in key:
            yield tensor
    for child in module.children():
        if id(child) not in modules:
            yield from _weights(replace(candidate, module=child), modules)


def attribute(root: nn.Module, path: str) -> Any:
    prefix, _, name = path.rpartition(".")
    return getattr(root.get_submodule(prefix), name)
