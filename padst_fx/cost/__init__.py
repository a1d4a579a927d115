"""What a projection costs, dense and sparse: measured where it was, else calculated."""

from __future__ import annotations

from padst_fx.cost.model import SOURCES, Comparison, CostModel, Estimate
from padst_fx.cost.work import Work, check_tokens, counted

__all__ = ["SOURCES", "Comparison", "CostModel", "Estimate", "Work", "check_tokens", "counted"]
