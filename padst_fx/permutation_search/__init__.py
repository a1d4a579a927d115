"""Which permutation and units keep most of a trained weight: `search` decides both together."""

from __future__ import annotations

from padst_fx.permutation_search.calibration import Calibration, input_norms
from padst_fx.permutation_search.objective import Retained, retained_share
from padst_fx.permutation_search.search import search

__all__ = ["Calibration", "Retained", "input_norms", "retained_share", "search"]
