"""What is known about one linear map of a model."""

from __future__ import annotations

from dataclasses import dataclass

ROLES = ("q", "k", "v", "qkv", "attn_out", "mlp_in", "mlp_gate", "mlp_out", "head", "other")
KINDS = ("linear", "conv1d", "attention")


@dataclass(frozen=True)
class Projection:
    """One linear map: where it is, its shape, what it does and whether it can be replaced.

    name: its module's qualified name; for nn.MultiheadAttention that name and `q_proj`, `k_proj`,
        `v_proj` or `out_proj`; for a parameter outside any known module, the parameter's name.
    role: one of ROLES.
    shape: (out_features, in_features), whatever the order the weight is stored in.
    owner: the qualified name of the module to replace.
    kind: one of KINDS.
    tied_with: the name of another parameter that shares the weight's memory, or None.
    unsupported: why it cannot be replaced, as a sentence, or None.
    """

    name: str
    role: str
    shape: tuple[int, int]
    owner: str
    kind: str
    tied_with: str | None = None
    unsupported: str | None = None
