"""Dynamic sparse training: masks that change while a model trains."""

from __future__ import annotations

from padst_fx.dst.learned_permutation import LearnedPermutation
from padst_fx.dst.manager import DST
from padst_fx.dst.soft_schedule import SoftPermutation
from padst_fx.dst.statistics import LayerUpdate, PermutationUpdate, SoftUpdate, Update

__all__ = [
    "DST",
    "LayerUpdate",
    "LearnedPermutation",
    "PermutationUpdate",
    "SoftPermutation",
    "SoftUpdate",
    "Update",
]
