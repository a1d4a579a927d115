"""Runs an exported graph on tokens instead of tensors (see flow), collecting evidence for roles."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.utils import _pytree as pytree

from padst_fx.projections import flow, nodes, operators
from padst_fx.projections.evidence import Ledger
from padst_fx.projections.flow import ATTENDED, CONSTANT, DATA, Carried, Scores, Tokens
from padst_fx.projections.inventory import Candidate
from padst_fx.projections.weights import Weights, attribute

NOTHING: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Value:
    """What a node stands for: tokens, and for constants the parameters they are made of.

    `exact`: it is these parameters, perhaps reshaped, sliced or cast; `computed`: made from them.
    """

    tokens: Tokens = CONSTANT
    exact: frozenset[str] = NOTHING
    computed: frozenset[str] = NOTHING

    @property
    def parameters(self) -> frozenset[str]:
        return self.exact | self.computed

    @property
    def is_weight(self) -> bool:
        return not self.tokens and bool(self.parameters)


Environment = dict[fx.Node, Any]


class Interpreter:
    """Follows the weights of `found` through an exported program of `model`."""

    def __init__(self, model: nn.Module, found: list[Candidate]) -> None:
        self.ledger = Ledger()
        self.weights = Weights(model, found, self.ledger)

    def run(self, program: ExportedProgram) -> None:
        operands = [self._operand(spec) for spec in program.graph_signature.input_specs]
        user_outputs = set(program.graph_signature.user_outputs)
        environment = self._execute(program.graph_module, operands)
        (output,) = (node for node in program.graph.nodes if node.op == "output")
        for node in output.all_input_nodes:
            if node.name in user_outputs:
                self.ledger.output(environment[node].tokens)

    def _operand(self, spec: Any) -> Value:
        """A float input is DATA once used; integer ones are told apart by dtype later."""
        if spec.kind is InputKind.USER_INPUT:
            return Value(tokens=frozenset({DATA}))
        if spec.kind in (InputKind.PARAMETER, InputKind.BUFFER):
            name = self.weights.name(spec.target.partition(".")[2])
            if name is not None:
                return Value(exact=frozenset({name}))
        return Value()

    def _execute(self, graph_module: fx.GraphModule, operands: list[Value]) -> Environment:
        environment: Environment = {}
        remaining = iter(operands)
        for node in graph_module.graph.nodes:
            if node.op == "placeholder":
                value: Any = next(remaining)
                environment[node] = value if nodes.is_float(node) or value.exact else Value()
            elif node.op == "get_attr":
                value = attribute(graph_module, str(node.target))
                environment[node] = value if isinstance(value, fx.GraphModule) else Value()
            elif node.op == "call_function":
                environment[node] = self._call(node, environment)
                _write_back(node, environment)
        return environment

    def _call(self, node: fx.Node, environment: Environment) -> Any:
        if node.target is operator.getitem:
            source = environment[nodes.arguments(node)[0]]
            return source[nodes.arguments(node)[1]] if isinstance(source, list) else source
        if isinstance(node.target, torch._ops.HigherOrderOperator):
            return self._call_higher_order(node, environment)
        if not nodes.is_float(node):
            return Value()
        name = nodes.operator_name(node)
        values = [environment[n] for n in node.all_input_nodes if isinstance(environment[n], Value)]
        if name in operators.ATTENTIONS:
            return self._attention(node, environment)
        if name == "einsum":
            return self._einsum(node, environment)
        if name in operators.MATMULS:
            return self._matmul(node, name, environment)
        if name not in operators.VIEWS:
            self.weights.note_readers(node, _exact(values))
        if name.startswith("embedding"):
            return Value(frozenset({DATA}))
        if not any(value.tokens for value in values):
            return _constant(name, values)
        return Value(_elementwise(node, name, values))

    def _call_higher_order(self, node: fx.Node, environment: Environment) -> Any:
        """Regions such as autocast, checkpoints and branches: the graphs inside run in place."""
        if str(node.target) in operators.ATTENTIONS:
            return self._attention(node, environment)
        leaves = pytree.arg_tree_leaves(*node.args)
        inputs = [environment[leaf] if nodes.is_node(leaf) else Value() for leaf in leaves]
        graphs = [value for value in inputs if isinstance(value, fx.GraphModule)]
        results = [self._outputs(graph, inputs) for graph in graphs]
        if not results or len({len(result) for result in results}) > 1:
            return Value(frozenset({DATA}))
        return [_merged(branches) for branches in zip(*results, strict=True)]

    def _outputs(self, graph_module: fx.GraphModule, values: list[Any]) -> list[Value]:
        count = sum(node.op == "placeholder" for node in graph_module.graph.nodes)
        environment = self._execute(graph_module, values[len(values) - count :])
        (output,) = (node for node in graph_module.graph.nodes if node.op == "output")
        leaves = pytree.arg_tree_leaves(*output.args)
        return [environment[leaf] if nodes.is_node(leaf) else Value() for leaf in leaves]

    def _attention(self, node: fx.Node, environment: Environment) -> Value:
        arguments = {
            **dict(zip(("query", "key", "value"), nodes.arguments(node), strict=False)),
            **node.kwargs,
        }
        query, key, value = (environment[arguments[n]] for n in ("query", "key", "value"))
        self.ledger.attention(query.tokens, key.tokens, value.tokens)
        return Value(frozenset({ATTENDED}))

    def _matmul(self, node: fx.Node, name: str, environment: Environment) -> Value:
        left, right = (nodes.arguments(node)[place] for place in operators.MATMULS[name])
        bias: Any = node.kwargs.get("bias")
        if operators.MATMUL_BIAS.get(name, len(node.args)) < len(node.args):
            bias = nodes.arguments(node)[operators.MATMUL_BIAS[name]]
        shapes = nodes.matmul_shapes(name, left, right)
        product = self._product(node, environment, left, right, shapes)
        if not nodes.is_node(bias):
            return product
        return replace(product, tokens=flow.add((product.tokens, environment[bias].tokens)))

    def _einsum(self, node: fx.Node, environment: Environment) -> Value:
        equation, operands = nodes.arguments(node)[:2]
        if len(operands) != 2:
            self.weights.note_readers(node, _exact(environment[n] for n in operands))
            return Value(frozenset({DATA}))
        left, right = operands
        terms = nodes.with_arrow(str(equation).replace(" ", ""))
        shapes = nodes.einsum_shapes(terms, left, right)
        product = self._product(node, environment, left, right, shapes)
        if not nodes.key_first(terms):
            return product
        return replace(product, tokens=flow.flip(product.tokens))

    def _product(
        self,
        node: fx.Node,
        environment: Environment,
        left: Any,
        right: Any,
        weight_shapes: tuple[tuple[int, int], tuple[int, int]],
    ) -> Value:
        """A matmul. `weight_shapes` are the [out, in] of the left and of the right factor, were it
        the weight."""
        a, b = environment[left], environment[right]
        if (weight := self._weight_place(node, a, b)) is None:
            if not a.tokens and not b.tokens:
                return _constant("matmul", [a, b])
            return Value(self._activations_product(a.tokens, b.tokens))
        inputs, weight_value = (b, a) if weight == 0 else (a, b)
        names = self.weights.flows_of(node, weight_value.parameters, weight_shapes[weight])
        for name in names:
            self.ledger.matmul(name, inputs.tokens)
        return Value(frozenset(Carried(name) for name in names) or frozenset({DATA}))

    def _weight_place(self, node: fx.Node, a: Value, b: Value) -> int | None:
        """Which factor is the weight: the constant one made of parameters, and among two such the
        one that is a known projection's. Two of the same projection make up its weight."""
        if a.is_weight and b.is_weight:
            left, right = self.weights.owners(a.parameters), self.weights.owners(b.parameters)
            if left & right or not left | right:
                return None
            return 1 if right else 0
        if b.is_weight and (a.tokens or nodes.operator_name(node) == "linear"):
            return 1
        return 0 if a.is_weight and b.tokens else None

    def _activations_product(self, left: Tokens, right: Tokens) -> Tokens:
        """A product of which no factor is a parameter."""
        if not left or not right:
            return left or right
        for weights, value in ((left, right), (right, left)):
            found = [s for s in flow.scores(weights) if s.weights]
            for token in found:
                self.ledger.weighted_sum(token, value)
            if found:
                return frozenset({ATTENDED})
        return frozenset({Scores(flow.flows(left), flow.flows(right))})


def _exact(values: Iterable[Value]) -> frozenset[str]:
    return NOTHING.union(*(value.exact for value in values))


def _constant(name: str, values: list[Value]) -> Value:
    exact = NOTHING.union(*(value.exact for value in values))
    computed = NOTHING.union(*(value.computed for value in values))
    if name in operators.VIEWS:
        return Value(exact=exact, computed=computed)
    return Value(computed=exact | computed)


def _merged(values: tuple[Value, ...]) -> Value:
    return Value(
        flow.join(value.tokens for value in values),
        NOTHING.union(*(value.exact for value in values)),
        NOTHING.union(*(value.computed for value in values)),
    )


def _elementwise(node: fx.Node, name: str, values: list[Value]) -> Tokens:
    """The tokens of an operator that is not a matmul; one that no table knows gives DATA."""
    tokens = [value.tokens for value in values]
    if name in operators.VIEWS:
        return flow.flip(tokens[0]) if nodes.swaps_last_axes(node, name) else tokens[0]
    if name in operators.SOFTMAXES:
        return flow.softmax(tokens[0], nodes.from_end(node, nodes.arguments(node)[1]))
    if name in operators.ACTIVATIONS and not nodes.is_soft_cap(node, name):
        return flow.activate(tokens[0])
    if name in operators.TRANSPARENT or name in operators.ACTIVATIONS:
        return tokens[0]
    if name in operators.SUMS:
        return flow.add(tokens)
    if name in operators.PRODUCTS:
        return flow.multiply(tokens)
    if name in operators.JOINS:
        return flow.join(tokens)
    return frozenset({DATA})


def _write_back(node: fx.Node, environment: Environment) -> None:
    """An in-place operator changes its first argument, and what that is a view of."""
    target = node.target
    if not isinstance(target, torch._ops.OpOverload) or not target._schema.is_mutable:
        return
    source = nodes.arguments(node)[0]
    if not nodes.is_node(source) or not isinstance(environment[node], Value):
        return
    environment[source] = environment[node]
    while source.op == "call_function" and nodes.operator_name(source) in operators.VIEWS:
        source = nodes.arguments(source)[0]
        environment[source] = _merged((environment[source], environment[node]))
