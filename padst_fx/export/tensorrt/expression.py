"""Integers that depend on the number of tokens, as data.

An engine serves many numbers of tokens, so a launch's arguments are expressions in it. As nested
lists they can be stored, compared, and evaluated with Python's or with TensorRT's integers.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch

TOKENS = "tokens"
Expression = int | str | list[Any]
CeilDiv = Callable[[Any, Any], Any]


def expression_of(value: int | torch.SymInt) -> Expression:
    """`value` as an expression: an int, `TOKENS`, or `[operator, left, right]`.

    Raises `NotImplementedError` for an operator that the launch functions do not use.
    """
    return value if isinstance(value, int) else _of_sympy(value.node.expr)


def _of_sympy(expression: Any) -> Expression:
    if expression.is_Integer:
        return int(expression)
    if expression.is_Symbol:
        return TOKENS
    if expression.is_Add:
        return _joined("+", map(_of_sympy, expression.args))
    if expression.is_Mul:
        return _product(expression)
    kind = type(expression).__name__
    if kind == "FloorDiv":
        return ["//", *map(_of_sympy, expression.args)]
    if kind == "Max" and expression.args[0] == 1:
        # A stride is at least 1 even of an empty tensor; here there is always a token.
        return _of_sympy(expression.args[1])
    raise NotImplementedError(f"{expression} has an operator that no plugin's launch is made of")


def _product(expression: Any) -> Expression:
    """A product; what is rounded up is written `-(-a // b)` and becomes `["ceil", a, b]`."""
    coefficient = 1
    factors: list[Expression] = []
    for factor in expression.args:
        if type(factor).__name__ == "FloorDiv" and factor.args[0].could_extract_minus_sign():
            coefficient = -coefficient
            factors.append(["ceil", _of_sympy(-factor.args[0]), _of_sympy(factor.args[1])])
        elif isinstance(part := _of_sympy(factor), int):
            coefficient *= part
        else:
            factors.append(part)
    return _joined("*", factors if coefficient == 1 else [*factors, coefficient])


def _joined(name: str, parts: Any) -> Expression:
    """Left to right, with integers last: TensorRT's expressions take them on the right alone."""
    first, *others = sorted(parts, key=lambda part: isinstance(part, int))
    for part in others:
        first = [name, first, part]
    return first


def evaluate(expression: Expression, tokens: Any, ceil_div: CeilDiv) -> Any:
    """The value of an expression in whatever integers `tokens` and `ceil_div` work on."""
    if isinstance(expression, int):
        return expression
    if isinstance(expression, str):
        return tokens
    name, left, right = expression
    apply = {"+": operator.add, "*": operator.mul, "//": operator.floordiv, "ceil": ceil_div}[name]
    return apply(evaluate(left, tokens, ceil_div), evaluate(right, tokens, ceil_div))


def is_multiple(expression: Expression, divisor: int) -> bool:
    """Whether it is certain that `divisor` divides every value of the expression."""
    if isinstance(expression, int):
        return expression % divisor == 0
    if isinstance(expression, str):
        return divisor == 1
    name, left, right = expression
    if name == "*":
        return is_multiple(left, divisor) or is_multiple(right, divisor)
    return name == "+" and is_multiple(left, divisor) and is_multiple(right, divisor)
