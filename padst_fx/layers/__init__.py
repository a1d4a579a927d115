"""The modules that take the place of dense projections."""

from __future__ import annotations

from padst_fx.layers.linear import SparseLinear

__all__ = ["SparseLinear"]
