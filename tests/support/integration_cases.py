"""What the integrations' tests train, and the loop by hand that they are compared with."""

from __future__ import annotations

from torch import nn

import padst_fx
from padst_fx import SoftPermutation

# Structure, method and permutation.
CASES = {
    "rigl learned": ("diag", "rigl", "learned"),
    "rigl_exact learned": (padst_fx.Block(4), "rigl_exact", "learned"),
    "set random": ("nm", "set", "random"),
    "mest block": (padst_fx.Block(4), "mest", "identity"),
    "dynadiag": ("diag", "dynadiag", "random"),
    "rigl soft": ("diag", "rigl", "soft"),
}
CLIPPED = 0.1


def settings_of(case):
    _, method, permutation = CASES[case]
    soft = SoftPermutation(warmup=0.5, harden_at=8) if permutation == "soft" else None
    return {"method": method, "delta_t": 2, "drop_fraction": 0.5, "soft": soft}


def train_by_hand(model, optimizer, dst, batches, loss_of, steps, accumulated, after=lambda: None):
    """Steps over the batches in turn, several added up for each, gradients clipped; `after` is
    called behind the optimizer."""
    for step in range(steps):
        first = accumulated * step
        micro = [batches[i % len(batches)] for i in range(first, first + accumulated)]
        (sum(map(loss_of, micro)) / accumulated + dst.penalty()).backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIPPED)
        optimizer.step()
        after()
        optimizer.zero_grad()
        dst.step()
