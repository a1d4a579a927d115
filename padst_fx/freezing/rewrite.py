"""Carries a placement out: tensors are reordered for good, gathers that stay are put in."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from padst_fx.freezing import sparse_order
from padst_fx.freezing.capture import drop_unused, put_tensor, tensor_at
from padst_fx.freezing.layout import Layout
from padst_fx.freezing.order import Order
from padst_fx.freezing.placement import Placement
from padst_fx.freezing.rules_sparse import kernel_of, window_of
from padst_fx.freezing.trace import Reading
from padst_fx.passes.projection_op import arguments, projection_ops


class Rewriter:
    """Rewrites the module of a placement's trace, once."""

    def __init__(self, placement: Placement) -> None:
        self.placement = placement
        self.trace = placement.trace
        self.module: GraphModule = placement.trace.module

    def run(self) -> GraphModule:
        """The module, rewritten in place."""
        readings = {reading.node: reading for reading in self.trace.readings}
        sparse = [node for node in self.module.graph.nodes if node.target in projection_ops()]
        # Layers read values and index of each other's layouts only before these change.
        for node in sparse:
            if node in readings:
                self._reorder_layer(node, readings[node])
        self._reorder_constants()
        self._place_gathers()
        self.module.graph.eliminate_dead_code()
        drop_unused(self.module)
        self.module.delete_all_unused_submodules()
        self.module.graph.lint()
        self.module.recompile()
        return self.module

    def _reorder_layer(self, node: Node, reading: Reading) -> None:
        kernel, named = kernel_of(node), arguments(node)
        place = "offsets" if kernel == "shift" else "index"
        values, index = (tensor_at(self.module, str(named[n].target)) for n in ("values", place))
        remaining = self.placement.remaining(reading)
        window = window_of(node)
        changed = {}
        if not remaining.is_identity and sparse_order.can_absorb(kernel, values, window, remaining):
            values, index = sparse_order.with_inputs(kernel, values, index, window, remaining)
            remaining = Order.identity(remaining.size)
            changed = {"values": values, place: index}
        if not (rows := self._rows(node)).is_identity:
            values, index = sparse_order.with_outputs(kernel, values, index, rows)
            changed = {"values": values, place: index}
        perm = tensor_at(self.module, str(named["perm"].target))
        kept = remaining.tensor(perm.dtype) if not remaining.is_identity else perm.new_empty(0)
        if not torch.equal(kept.to(perm.device), perm):
            changed["perm"] = kept.to(perm.device)
        for name, tensor in changed.items():
            named[name] = self._constant(f"{named[name].target}", tensor, node)
        node.args, node.kwargs = tuple(named.values()), {}

    def _rows(self, node: Node) -> Order:
        layout = self.trace.layouts[node]
        assert isinstance(layout, Layout)
        group = layout.at(node.meta["val"].dim() - 1)
        return Order.identity(1) if group is None else self.placement.order(group.axis)

    def _reorder_constants(self) -> None:
        """Every constant is its class's from now on; the classes' members read nothing else."""
        for node, layout in self.trace.layouts.items():
            if node.op != "get_attr" or not node.users:
                continue
            tensor = tensor_at(self.module, str(node.target))
            for group in layout.groups:
                order = self.placement.order(group.axis)
                if not order.is_identity:
                    index = order.tensor().to(tensor.device)
                    tensor = tensor.index_select(group.dims[0], index)
            put_tensor(self.module, str(node.target), tensor.contiguous())

    def _place_gathers(self) -> None:
        """Those between nodes first: they feed the graph's own, which may then go."""
        inputs: dict[tuple[Node, Node], Node] = {}
        for seam in self.trace.seams:
            order = self.placement.gather(seam)
            if seam.index is None and not order.is_identity:
                key = (seam.consumer, seam.producer)
                source = inputs.get(key, seam.producer)
                inputs[key] = self._index_select(seam.consumer, source, seam.dim, order)
                seam.consumer.replace_input_with(source, inputs[key])
        for seam in self.trace.seams:
            if seam.index is not None:
                order = self.placement.gather(seam)
                source = seam.consumer.all_input_nodes[0]
                if not order.is_identity:
                    source = self._index_select(seam.consumer, source, seam.dim, order)
                seam.consumer.replace_all_uses_with(source)

    def _index_select(self, before: Node, source: Node, dim: int, order: Order) -> Node:
        like = source.meta["val"]
        index = self._constant(f"{before.name}_order", order.tensor().to(like.device), before)
        with self.module.graph.inserting_before(before):
            gather = self.module.graph.call_function(
                torch.ops.aten.index_select.default, (source, dim, index)
            )
        gather.meta["val"] = like
        return gather

    def _constant(self, name: str, tensor: Tensor, before: Node) -> Node:
        """A new constant under this name, or one numbered after it if that is taken."""
        target, number = name, 1
        while _exists(self.module, target):
            number += 1
            target = f"{name}_{number}"
        put_tensor(self.module, target, tensor)
        with self.module.graph.inserting_before(before):
            node = self.module.graph.get_attr(target)
        node.meta["val"] = tensor
        return node


def _exists(module: GraphModule, target: str) -> bool:
    try:
        tensor_at(module, target)
    except AttributeError:
        return False
    return True


