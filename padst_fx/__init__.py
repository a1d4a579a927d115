"""padst_fx: structured-sparse permuted projections, trained dynamically, compiled once."""

from __future__ import annotations

import padst_fx.ops
