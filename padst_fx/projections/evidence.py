"""What the graph showed about each projection, and the role that follows from it."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

from padst_fx.projections import flow
from padst_fx.projections.flow import ATTENDED, Carried, Scores, Stage, Tokens


@dataclass
class Evidence:
    """Facts about one projection. All empty means that no matmul with its weight was seen."""

    reached: bool = False
    slots: set[str] = field(default_factory=set)
    reads_attention: bool = False
    reads_activated: bool = False
    at_output: bool = False
    is_gate: bool = False
    activated_for: set[str] = field(default_factory=set)
    readers: list[str] = field(default_factory=list)


class Ledger(defaultdict[str, Evidence]):
    """Evidence by flow."""

    def __init__(self) -> None:
        super().__init__(Evidence)

    def matmul(self, name: str, inputs: Tokens) -> None:
        """Projection `name` was applied to a tensor that carries `inputs`."""
        evidence = self[name]
        evidence.reached = True
        evidence.reads_attention |= ATTENDED in inputs
        for token in inputs:
            if isinstance(token, Carried) and token.stage > Stage.PLAIN and token.flow != name:
                evidence.reads_activated = True
                self[token.flow].is_gate |= token.stage is Stage.GATE
                self[token.flow].activated_for.add(name)

    def attention(self, query: Tokens, key: Tokens, value: Tokens) -> None:
        for slot, tokens in (("q", query), ("k", key), ("v", value)):
            self._fill(slot, flow.flows(tokens))

    def weighted_sum(self, weights: Scores, value: Tokens) -> None:
        query, key = weights.query_and_key
        for slot, names in (("q", query), ("k", key), ("v", flow.flows(value))):
            self._fill(slot, names)

    def _fill(self, slot: str, names: frozenset[str]) -> None:
        for name in names:
            self[name].slots.add(slot)

    def output(self, tokens: Tokens) -> None:
        """A tensor the model returns: what it carries plainly and with nothing else is a head."""
        plain = {t for t in tokens if isinstance(t, Carried) and t.stage is Stage.PLAIN}
        if plain == set(tokens):
            for name in flow.flows(tokens):
                self[name].at_output = True

    def role(self, name: str) -> str:
        """The role of projection `name`. A layer that feeds only a head is its transform: other."""
        evidence = self[name]
        if evidence.slots:
            return evidence.slots.copy().pop() if len(evidence.slots) == 1 else "qkv"
        if evidence.reads_attention:
            return "attn_out"
        if self._is_head(name):
            return "head"
        if evidence.is_gate:
            return "mlp_gate"
        if not all(self._is_head(reader) for reader in evidence.activated_for):
            return "mlp_in"
        return "mlp_out" if evidence.reads_activated else "other"

    def _is_head(self, name: str) -> bool:
        evidence = self[name]
        return evidence.at_output and not evidence.slots and not evidence.reads_attention
