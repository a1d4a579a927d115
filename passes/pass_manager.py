"""Runs the passes on every graph of a compile, and says what they did."""

from __future__ import annotations

import hashlib
import logging
import time
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from torch._inductor.custom_graph_pass import CustomGraphPass
from torch._logging._internal import trace_structured_artifact
from torch.fx import Graph, GraphModule
from torch.fx._utils import lazy_format_graph_code
from torch.fx.passes.graph_transform_observer import GraphTransformObserver

from padst_fx.passes import source_hash
from padst_fx.passes.graph_pass import GraphPass

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class GraphReport:
    """What the passes did to one graph: rewrites and milliseconds per pass, in order."""

    kind: str
    counts: dict[str, int]
    milliseconds: dict[str, float]

    def __str__(self) -> str:
        parts = [
            f"{name} {count} ({self.milliseconds[name]:.1f} ms)"
            for name, count in self.counts.items()
        ]
        return f"{self.kind} graph: " + (", ".join(parts) or "no passes")


class PassManager(CustomGraphPass):
    """An ordered list of passes, as one `post_grad_custom_pre_pass` of Inductor.

    Called once per graph: on the forward graph, then, in training, on the backward graph. Each
    pass runs in order; after one that rewrote something, unused nodes are removed and the graph
    is linted. `reports` holds one `GraphReport` per graph seen, so make one manager per compile.
    A graph that comes from a compile cache is not seen.

    `joint_passes` run before, on forward and backward in one: Inductor calls them through
    `JointPasses`, others through `run_joint`.

    `required` names passes that must rewrite something: RuntimeError if one of them matched
    nothing in the forward (or inference) graph, or in the joint one. The backward graph has none
    of the patterns in an ordinary model and is not asked. `require_any` asks the same of all
    passes together.
    """

    def __init__(
        self,
        passes: Iterable[GraphPass],
        required: Collection[str] = (),
        require_any: bool = False,
        joint_passes: Iterable[GraphPass] = (),
    ) -> None:
        self.passes = tuple(passes)
        self.joint_passes = tuple(joint_passes)
        self.required = tuple(required)
        self.require_any = require_any
        self.reports: list[GraphReport] = []
        names = [graph_pass.name for graph_pass in (*self.joint_passes, *self.passes)]
        missing = [name for name in self.required if name not in names]
        if missing:
            raise ValueError(f"required passes {missing} are not among the passes {names}")

    @property
    def counts(self) -> Counter[str]:
        """Rewrites per pass, over all graphs seen."""
        total: Counter[str] = Counter()
        for report in self.reports:
            total.update(report.counts)
        return total

    def __call__(self, graph: Graph) -> None:
        report = self._run_all(self.passes, graph, _kind(graph))
        if report.kind == "forward":
            self._check_required(report)

    def run_joint(self, graph: Graph) -> None:
        """The joint passes, on forward and backward in one (or on an inference graph)."""
        self._run_all(self.joint_passes, graph, "joint")

    def _run_all(self, passes: tuple[GraphPass, ...], graph: Graph, kind: str) -> GraphReport:
        report = GraphReport(kind, {}, {})
        for position, graph_pass in enumerate(passes):
            start = time.perf_counter()
            report.counts[graph_pass.name] = self._run(position, graph_pass, graph)
            report.milliseconds[graph_pass.name] = 1e3 * (time.perf_counter() - start)
        self.reports.append(report)
        log.info("%s", report)
        return report

    def uuid(self) -> str:
        """A key of everything a rewritten graph depends on: all sources, passes, strictness."""
        configuration = (self.joint_passes, self.passes, self.required, self.require_any)
        sources = source_hash.hash_files(source_hash.source_files())
        return hashlib.sha256(f"{sources} {configuration!r}".encode()).hexdigest()

    def _run(self, position: int, graph_pass: GraphPass, graph: Graph) -> int:
        label = f"padst_fx.{position}.{graph_pass.name}"
        module = graph.owning_module
        assert module is not None, "passes run on the graph of a GraphModule"
        _dump(f"{label}.before", module)
        observer = GraphTransformObserver(module, graph_pass.name, subsystem="post_grad_passes")
        # None: switched off through Inductor's `disabled_passes` or the compiler bisector.
        count = observer.apply_graph_pass(graph_pass.apply) or 0
        if count:
            graph.eliminate_dead_code()
            graph.lint()
            _dump(f"{label}.after", module)
        return count

    def _check_required(self, report: GraphReport) -> None:
        joint = (earlier.counts for earlier in self.reports if earlier.kind == "joint")
        counts = sum(map(Counter, joint), Counter(report.counts))
        unmatched = [name for name in self.required if not counts[name]]
        if unmatched:
            raise RuntimeError(
                f"strict=True: {', '.join(unmatched)} matched nothing in the forward graph "
                f"({report}); TORCH_LOGS='+padst_fx' shows the graph"
            )
        if self.require_any and not any(counts.values()):
            raise RuntimeError(
                f"strict=True: no pass matched anything in the forward graph ({report}); "
                "TORCH_LOGS='+padst_fx' shows the graph"
            )


class JointPasses(CustomGraphPass):
    """The joint passes of a manager, as one `joint_custom_pre_pass` of Inductor."""

    def __init__(self, manager: PassManager) -> None:
        self.manager = manager

    def __call__(self, graph: Graph) -> None:
        self.manager.run_joint(graph)

    def uuid(self) -> str:
        """The manager's: what it does to one graph goes with what it does to the others."""
        return self.manager.uuid()


class PassChain(CustomGraphPass):
    """Several custom passes as one, for a torch whose config takes a single pass (before 2.13)."""

    def __init__(self, passes: Iterable[CustomGraphPass]) -> None:
        self.passes = tuple(passes)

    def __call__(self, graph: Graph) -> None:
        for custom_pass in self.passes:
            custom_pass(graph)

    def uuid(self) -> tuple[object, ...] | None:
        """The parts' keys, or None (no caching) if one of them has none."""
        keys = tuple(
            custom_pass.uuid() if isinstance(custom_pass, CustomGraphPass) else None
            for custom_pass in self.passes
        )
        return keys if all(keys) else None


def _kind(graph: Graph) -> str:
    """Whether AOTAutograd made this graph for the forward (or inference) or the backward."""
    inputs = graph.find_nodes(op="placeholder")
    return "backward" if any("tangents" in str(node.target) for node in inputs) else "forward"


def _dump(name: str, module: GraphModule) -> None:
    """The graph's code, to the log at debug level and to the structured trace."""
    log.debug("%s", lazy_format_graph_code(name, module))
    trace_structured_artifact(
        name, "string", lambda: module.print_readable(print_output=False, include_stride=True)
    )
