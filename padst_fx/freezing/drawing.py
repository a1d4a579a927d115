"""A picture of a graph and of what became of its permutations."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch.fx import Node

from padst_fx.freezing.dense import layer_name
from padst_fx.freezing.placement import Placement
from padst_fx.passes.projection_op import projection_ops
from padst_fx.pictures import figure
from padst_fx.projections import nodes

COLOURS = {
    "folded": "#4c9f70",
    "absorbed": "#8cc6a5",
    "cancelled": "#7aa6c2",
    "read through": "#e0a63a",
    "gather": "#c8553d",
    "": "#d9d9d9",
}
# Operators that are shown; what lies between them is an edge.
SHOWN = frozenset(
    (
        *("linear", "addmm", "mm", "matmul", "bmm", "conv2d", "embedding", "layer_norm"),
        *("rms_norm", "batch_norm", "scaled_dot_product_attention", "add", "cat", "split"),
        *("index_select", "index", "softmax"),
    )
)


@dataclass(frozen=True)
class Picture:
    """The operators that matter to permutations: (name, label, fate), and (from, to) by number."""

    operators: tuple[tuple[str, str, str], ...]
    edges: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, placement: Placement, fates: dict[Node, str]) -> Picture:
        """The picture of a placement's graph."""
        shown: dict[Node, int] = {}
        sources: dict[Node, frozenset[int]] = {}
        operators: list[tuple[str, str, str]] = []
        edges: set[tuple[int, int]] = set()
        for node in placement.trace.module.graph.nodes:
            inputs = frozenset().union(*(sources[i] for i in node.all_input_nodes))
            sources[node] = inputs
            if node.op == "get_attr" or not (label := _label(node, fates)):
                continue
            shown[node] = len(operators)
            operators.append((node.name, label, fates.get(node, "")))
            edges |= {(source, shown[node]) for source in inputs}
            sources[node] = frozenset({shown[node]})
        return cls(tuple(operators), tuple(sorted(edges)))

    def draw(self, path: str | Path) -> Path:
        """Write the picture to a file of any kind that matplotlib knows.

        Raises `ModuleNotFoundError` without the extra `pictures`.
        """
        import networkx as nx

        picture = figure()
        from matplotlib.lines import Line2D

        graph = nx.DiGraph()
        graph.add_nodes_from(range(len(self.operators)))
        graph.add_edges_from(self.edges)
        for layer, generation in enumerate(nx.topological_generations(graph)):
            for number in generation:
                graph.nodes[number]["layer"] = -layer
        places = nx.multipartite_layout(graph, subset_key="layer", align="horizontal")
        height = max(4.0, 0.55 * (1 - min(d["layer"] for _, d in graph.nodes(data=True))))
        picture.set_size_inches(11, height)
        axes = picture.add_subplot()
        colours = [COLOURS[fate] for _, _, fate in self.operators]
        labels = {number: label for number, (_, label, _) in enumerate(self.operators)}
        nx.draw_networkx(
            graph, places, ax=axes, labels=labels, node_color=colours, node_size=320,
            font_size=7, edge_color="#888888", arrowsize=8,
        )  # fmt: skip
        handles = [
            Line2D([], [], marker="o", linestyle="", color=colour, label=fate)
            for fate, colour in COLOURS.items()
            if fate
        ]
        axes.legend(handles=handles, fontsize=8)
        axes.set_axis_off()
        picture.savefig(path, bbox_inches="tight", dpi=110)
        return Path(path)


def _label(node: Node, fates: dict[Node, str]) -> str:
    if node.op in ("placeholder", "output"):
        return str(node.name)
    if node.target in projection_ops():
        return layer_name(node)
    name = nodes.operator_name(node)
    if (name in SHOWN or node in fates) and nodes.is_float(node):
        return name
    return ""
