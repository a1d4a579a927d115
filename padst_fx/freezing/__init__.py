"""A trained model's inference form, and what becomes of its permutations in it."""

from __future__ import annotations

from padst_fx.freezing.account import Account, Report
from padst_fx.freezing.frozen import FrozenModel, explain, freeze

__all__ = ["Account", "FrozenModel", "Report", "explain", "freeze"]
