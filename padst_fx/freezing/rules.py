"""The op table: what each operator does to the axes of what it reads.

A rule reads its inputs with `trace.read`, says what must agree, and returns the layout of the
result (a list for several), or None where it knows nothing: then the operator is a barrier.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from torch.fx import Node

from padst_fx.freezing import rules_products, rules_sparse, rules_views
from padst_fx.freezing.broadcast import broadcast
from padst_fx.freezing.layout import Layout
from padst_fx.freezing.trace import Trace
from padst_fx.passes.projection_op import arguments
from padst_fx.projections import nodes

Rule = Callable[[Trace, Node], Any]


def pointwise(trace: Trace, node: Node) -> Layout:
    """Functions of corresponding entries: all inputs must agree."""
    return broadcast(trace, node, node.all_input_nodes)


def inactive_dropout(trace: Trace, node: Node) -> Layout | None:
    """Dropout passes features on in evaluation; in training it draws by position."""
    rate, train = nodes.arguments(node)[1:3]
    return None if train and rate > 0 else trace.read(node, nodes.arguments(node)[0])


def check(trace: Trace, node: Node) -> Layout:
    """An assertion about dtype, device and the like reads no entries."""
    return Layout()


def like(trace: Trace, node: Node) -> Layout:
    """A new tensor of one value everywhere, which looks the same in any order."""
    return trace.new_layout(node, None)


def embedding(trace: Trace, node: Node) -> Layout:
    """Columns of the table are features; its rows are chosen by number."""
    table, indices = nodes.arguments(node)[:2]
    weight = trace.read(node, table)
    trace.fix(weight.at(0), f"{node.name} looks up its rows by number")
    rank = indices.meta["val"].dim()
    rows = trace.read(node, indices)
    column = weight.at(1)
    return Layout((*rows.groups, *((column.moved({1: rank}),) if column else ())))


def normalisation(parameters: slice) -> Rule:
    """Layer and RMS normalisation of the last dimension: any order, weight and bias follow."""

    def rule(trace: Trace, node: Node) -> Layout | None:
        source, normalised = nodes.arguments(node)[:2]
        layout = trace.read(node, source)
        last = source.meta["val"].dim() - 1
        if len(normalised) != 1:
            return None
        feature = layout.at(last)
        for parameter in nodes.arguments(node)[parameters]:
            if nodes.is_node(parameter):
                own = trace.read(node, parameter).at(0)
                trace.agree(feature, own, f"{node.name} normalises a part of it")
        if feature is not None and not feature.is_whole:
            trace.fix(feature, f"{node.name} normalises a part of it")
        return layout

    return rule


def batch_norm(trace: Trace, node: Node) -> Layout | None:
    """In evaluation, a scale and a shift per channel."""
    source, *channelwise = nodes.arguments(node)[:5]
    training = nodes.arguments(node)[5]
    if training:
        return None
    layout = trace.read(node, source)
    for parameter in channelwise:
        if nodes.is_node(parameter):
            own = trace.read(node, parameter).at(0)
            trace.agree(layout.at(1), own, f"{node.name} has one for each channel")
    return layout


def softmax(trace: Trace, node: Node) -> Layout:
    """The same in any order of the dimension it is taken along."""
    source, dim = nodes.arguments(node)[:2]
    layout = trace.read(node, source)
    _apart(trace, node, layout, {dim % source.meta["val"].dim()})
    return layout


def carried(trace: Trace, node: Node) -> Layout:
    """Copies and casts of the first argument, whatever the others are."""
    return trace.read(node, nodes.arguments(node)[0])


def smaller_or_larger(trace: Trace, node: Node) -> Layout | None:
    """`min` and `max` of two tensors, or over all of one; with a dimension they tell places."""
    if len(node.all_input_nodes) == 2:
        return pointwise(trace, node)
    return reduction(trace, node) if len(node.args) == 1 else None


def reduction(trace: Trace, node: Node) -> Layout:
    """Sums, means and the like do not depend on the order of what they reduce."""
    source = nodes.arguments(node)[0]
    rank = source.meta["val"].dim()
    given = arguments(node).get("dim")
    if given is None or given == []:
        given = list(range(rank))
    dims = {dim % rank for dim in ([given] if isinstance(given, int) else given)}
    layout = trace.read(node, source)
    _apart(trace, node, layout, dims)
    kept_rank = node.meta["val"].dim() == rank
    kept = [dim for dim in range(rank) if dim not in dims]
    places = {dim: dim if kept_rank else place for place, dim in enumerate(kept)}
    groups = [group for group in layout.groups if not set(group.dims) & dims]
    return Layout(tuple(group.moved(places) for group in groups))


def _apart(trace: Trace, node: Node, layout: Layout, dims: set[int]) -> None:
    """An operator treats `dims` by themselves: of axes taken apart, the rest must stay in place."""
    for group in layout.groups:
        inside = [dim for dim in group.dims if dim in dims]
        if inside and len(inside) < len(group.dims):
            trace.fix(group, f"{node.name} treats a part of it by itself")


def attention(trace: Trace, node: Node) -> Layout | None:
    """Scaled dot products: queries and keys agree within heads, values pass within heads."""
    named = dict(zip(("query", "key", "value", "mask", "dropout"), nodes.arguments(node),
                     strict=False))  # fmt: skip
    named |= {"mask": node.kwargs.get("attn_mask", named.get("mask"))}
    dropout = node.kwargs.get("dropout_p", named.get("dropout", 0.0))
    if dropout or node.kwargs.get("enable_gqa"):
        return None
    reason = f"{node.name} needs heads and tokens in place"
    query, key, value = (trace.read(node, named[name]) for name in ("query", "key", "value"))
    last = named["query"].meta["val"].dim() - 1
    if named["mask"] is not None:
        trace.fix_all([trace.read(node, named["mask"])], reason)
    trace.agree(query.at(last), key.at(last), reason)
    for layout, source in ((query, "query"), (key, "key"), (value, "value")):
        for group in layout.groups:
            if group.dims[-1] != named[source].meta["val"].dim() - 1:
                trace.fix(group, reason)
    carried = rules_products.carried(trace, value, last, node.meta["val"].shape[-1], reason)
    tokens = [
        group
        for dim in range(last)
        if not any(dim in group.dims for group in carried)
        for group in trace.new_group(dim, node.meta["val"].shape[dim], reason)
    ]
    return Layout((*tokens, *carried))


def getitem(trace: Trace, node: Node) -> Any:
    """One of several results."""
    source, place = nodes.arguments(node)
    layouts = trace.layouts[source]
    return layouts[place] if isinstance(layouts, list) else None


def _table(rule: Rule, names: str) -> dict[str, Rule]:
    return dict.fromkeys(names.split(), rule)


RULES: dict[str, Rule] = {
    **_table(
        pointwise,
        """add sub rsub mul div pow maximum minimum where addcmul addcdiv lerp eq ne lt le gt ge
        logical_and logical_or logical_not bitwise_and bitwise_or bitwise_not masked_fill clamp
        clamp_min clamp_max relu relu6 gelu silu mish elu selu celu leaky_relu hardtanh hardswish
        hardsigmoid softplus tanh sigmoid erf exp log sqrt rsqrt square reciprocal neg abs sin
        cos sign round floor ceil log1p expm1 fmod remainder isnan isinf nan_to_num
        threshold log_sigmoid""",
    ),
    **_table(
        carried,
        """to _to_copy type_as clone contiguous alias detach lift_fresh_copy float half bfloat16
        double""",
    ),
    **_table(smaller_or_larger, "max min"),
    **_table(
        reduction,
        """sum mean amax amin prod var std linalg_vector_norm norm logsumexp all any""",
    ),
    **_table(softmax, "softmax _softmax _safe_softmax log_softmax _log_softmax"),
    **_table(inactive_dropout, "dropout feature_dropout alpha_dropout feature_alpha_dropout"),
    **_table(check, "_assert_tensor_metadata sym_size sym_numel"),
    **_table(like, "zeros_like ones_like full_like zeros ones full new_zeros new_ones new_full"),
    "layer_norm": normalisation(slice(2, 4)),
    "rms_norm": normalisation(slice(2, 3)),
    "batch_norm": batch_norm,
    "embedding": embedding,
    "scaled_dot_product_attention": attention,
    str(operator.getitem): getitem,
    **rules_products.RULES,
    **rules_views.RULES,
    **rules_sparse.RULES,
}
