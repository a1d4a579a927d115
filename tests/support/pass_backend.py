"""A `torch.compile` backend that runs given passes and keeps the graphs from before and after."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.aot_autograd import make_boxed_func
from torch._functorch.partitioners import min_cut_rematerialization_partition
from torch._inductor.decomposition import select_decomp_table
from torch._ops import OpOverload
from torch.fx import Graph, GraphModule, Node

from padst_fx.passes import GraphPass, PassManager


@dataclass(frozen=True)
class GraphPair:
    """One functional graph before and after the passes."""

    before: Graph
    after: Graph


class PassBackend:
    """Runs `passes` on the forward, then the backward graph, as Inductor would get them.

    `PassBackend(FuseBias())` goes to `torch.compile(..., backend=...)`; `graphs` has a pair per
    graph in the order of compilation, `manager` the counts. The graphs run eagerly.
    """

    def __init__(self, *passes: GraphPass, **manager_options: Any) -> None:
        self.manager = PassManager(passes, **manager_options)
        self.graphs: list[GraphPair] = []
        self.joint_graphs: list[GraphPair] = []

    def __call__(self, gm: GraphModule, example_inputs: list[Any]) -> Callable[..., Any]:
        return aot_autograd(
            fw_compiler=self._run_passes,
            inference_compiler=self._run_inference,
            decompositions=select_decomp_table(),
            partition_fn=self._partition,
            keep_inference_input_mutations=True,
        )(gm, example_inputs)

    def _run_passes(self, module: GraphModule, _: list[Any]) -> Callable[..., Any]:
        before = copy.deepcopy(module.graph)
        self.manager(module.graph)
        module.recompile()
        self.graphs.append(GraphPair(before, copy.deepcopy(module.graph)))
        return make_boxed_func(module.forward)

    def _run_inference(self, module: GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        self._run_joint(module)
        return self._run_passes(module, inputs)

    def _partition(self, module: GraphModule, *args: Any, **kwargs: Any) -> Any:
        self._run_joint(module)
        return min_cut_rematerialization_partition(module, *args, **kwargs)

    def _run_joint(self, module: GraphModule) -> None:
        if self.manager.joint_passes:
            before = copy.deepcopy(module.graph)
            self.manager.run_joint(module.graph)
            self.joint_graphs.append(GraphPair(before, copy.deepcopy(module.graph)))

    @property
    def counts(self) -> dict[str, int]:
        """Rewrites per pass over all graphs."""
        return dict(self.manager.counts)

    def ops_before(self, graph: int = 0) -> list[OpOverload]:
        return ops(self.graphs[graph].before)

    def ops_after(self, graph: int = 0) -> list[OpOverload]:
        return ops(self.graphs[graph].after)

    def projections_after(self, graph: int = 0) -> list[Node]:
        """The sparse projections' nodes that are left after the passes."""
        return [node for node in self.graphs[graph].after.nodes if is_projection(node.target)]


def ops(graph: Graph) -> list[Any]:
    """Everything the graph calls, in order."""
    return [node.target for node in graph.nodes if node.op == "call_function"]


def is_projection(target: Any) -> bool:
    forwards = ("padst::shift", "padst::gather_gemm", "padst::scatter_gemm")
    return isinstance(target, OpOverload) and target._schema.name in forwards


def compile_with(
    function: Callable[..., Any], *passes: GraphPass, **manager_options: Any
) -> tuple[Callable[..., Any], PassBackend]:
    """`function` compiled whole behind the passes, and the backend that saw its graphs."""
    torch._dynamo.reset()
    backend = PassBackend(*passes, **manager_options)
    return torch.compile(function, backend=backend, fullgraph=True), backend
