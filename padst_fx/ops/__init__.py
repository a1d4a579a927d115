"""The ops of padst_fx, registered in `torch.ops.padst` when this package is imported."""

from __future__ import annotations

from padst_fx.ops import (
    gather_gemm,
    growth_score,
    permutation_probe,
    probe,
    scatter_gemm,
    shift,
)

__all__ = ["gather_gemm", "growth_score", "permutation_probe", "probe", "scatter_gemm", "shift"]
