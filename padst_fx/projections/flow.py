"""What a tensor of the graph carries of the projections before it, and how operators merge that.

A tensor carries a set of tokens. The empty set is a constant: parameters, buffers, positions,
masks. DATA is the model's input, or a sum in which no single projection can be told any more.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import IntEnum


class Stage(IntEnum):
    """How far a projection's output has come inside a feed-forward block."""

    PLAIN = 0
    ACTIVATED = 1
    GATE = 2


@dataclass(frozen=True)
class Carried:
    """The output of projection `flow`, reshaped, scaled, normalised, shifted by constants."""

    flow: str
    stage: Stage = Stage.PLAIN


@dataclass(frozen=True)
class Scores:
    """A product of two activations, `left` and `right` the projections in its factors.

    The key's factor is the one that `key_axis`, the axis of the softmax, comes from: -1 is the
    right factor's axis and -2 the left one's until `flipped`. `weights` once softmax was taken.
    """

    left: frozenset[str]
    right: frozenset[str]
    flipped: bool = False
    key_axis: int = -1
    weights: bool = False

    @property
    def query_and_key(self) -> tuple[frozenset[str], frozenset[str]]:
        key_is_right = (self.key_axis == -1) != self.flipped
        return (self.left, self.right) if key_is_right else (self.right, self.left)


DATA = "data"
ATTENDED = "attended"
Tokens = frozenset
CONSTANT: Tokens = frozenset()


def flows(tokens: Tokens) -> frozenset[str]:
    return frozenset(token.flow for token in tokens if isinstance(token, Carried))


def scores(tokens: Tokens) -> Tokens:
    return frozenset(token for token in tokens if isinstance(token, Scores))


def join(operands: Iterable[Tokens]) -> Tokens:
    """Side by side, as in a concatenation: everything stays, each projection at its last stage."""
    merged = frozenset().union(*operands)
    stages: dict[str, Stage] = {}
    for token in merged:
        if isinstance(token, Carried):
            stages[token.flow] = max(token.stage, stages.get(token.flow, token.stage))
    kept = frozenset(token for token in merged if not isinstance(token, Carried))
    return kept | {Carried(flow, stage) for flow, stage in stages.items()}


def add(operands: Iterable[Tokens]) -> Tokens:
    """A sum: constants change nothing, a sum of different things is DATA."""
    different = {operand for operand in operands if operand}
    merged = join(different)
    if len(different) < 2:
        return merged
    if found := scores(merged):
        return found
    if len({_subject(operand) for operand in different}) == 1:
        return merged
    return frozenset({DATA})


def multiply(operands: Iterable[Tokens]) -> Tokens:
    """A product: like a sum, but attention stays attention and gates differ from what they gate."""
    different = {operand for operand in operands if operand}
    merged = add(different)
    everything = join(different)
    if len(different) < 2 or scores(merged) or DATA in everything or DATA not in merged:
        return merged
    if ATTENDED in everything:
        return frozenset({ATTENDED})
    if len(different) > 2:
        return frozenset({DATA})
    return _gated(*different)


def _gated(one: Tokens, other: Tokens) -> Tokens:
    """The product of two sets of different projections."""
    first, second = _stage(one), _stage(other)
    if first < second:
        one, other, first, second = other, one, second, first
    if first is Stage.PLAIN:
        return frozenset({DATA})
    if first is Stage.GATE:
        return one
    if second is not Stage.PLAIN:
        return join((one, other))
    gates = frozenset(Carried(flow, Stage.GATE) for flow in flows(one) - flows(other))
    return gates | {Carried(flow, Stage.ACTIVATED) for flow in flows(other)}


def _stage(tokens: Tokens) -> Stage:
    return max(token.stage for token in tokens)


def activate(tokens: Tokens) -> Tokens:
    """An activation function: a projection's plain output becomes an activated one."""
    return frozenset(
        Carried(token.flow, max(token.stage, Stage.ACTIVATED))
        if isinstance(token, Carried)
        else replace(token, weights=True)
        if isinstance(token, Scores)
        else token
        for token in tokens
    )


def softmax(tokens: Tokens, axis: int) -> Tokens:
    """Scores become attention weights; `axis` counts from the end. All else passes through."""
    return frozenset(
        replace(token, weights=True, key_axis=axis) if isinstance(token, Scores) else token
        for token in tokens
    )


def flip(tokens: Tokens) -> Tokens:
    """The last two axes change places; after the softmax it is known which is the key's."""
    return frozenset(
        replace(token, flipped=not token.flipped)
        if isinstance(token, Scores) and not token.weights
        else token
        for token in tokens
    )


def _subject(tokens: Tokens) -> Tokens:
    """What the tokens are about, whatever their stage."""
    return flows(tokens) or tokens
