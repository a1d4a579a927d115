"""The structures that are measured, by the names they have in the tables."""

from __future__ import annotations

from padst_fx import NM, Block, Diag, Structure

SPARSITY = 0.9
STRUCTURES: dict[str, Structure] = {
    "Diag()": Diag(),
    "Diag(run=8)": Diag(run=8),
    "Diag(width=16)": Diag(width=16),
    "Diag(width=32)": Diag(width=32),
    "Block(8)": Block(8),
    "Block(16)": Block(16),
    "Block(32)": Block(32),
    "NM(1, 10)": NM(1, 10),
    "NM(1, 10, tile=16)": NM(1, 10, tile=16),
}
QUICK = ("Diag()", "Diag(width=16)", "Block(16)", "NM(1, 10, tile=16)")
MODELS = tuple(name for name in STRUCTURES if name not in ("Diag(width=32)", "Block(8)"))
# Measured behind a random permutation as well.
PERMUTED = ("Diag()", "Diag(width=16)")
QUICK_MODELS = ("Diag()",)
