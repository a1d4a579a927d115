"""Dynamic sparse training: masks that change while a model trains."""

from __future__ import annotations

from padst_fx.dst.manager import DST
from padst_fx.dst.soft_schedule import SoftPermutation
from padst_fx.dst.statistics import LayerUpdate, SoftUpdate, Update

__all__ = ["DST", "LayerUpdate", "SoftPermutation", "SoftUpdate", "Update"]
