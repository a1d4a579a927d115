"""Whether a product on the device is right, before anybody looks at its time."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu_work import Work
from padst_fx.kernels.gather_gemm import cpu as gather_gemm
from padst_fx.kernels.shift import cpu as shift


class WrongResultError(AssertionError):
    """A kernel's result is not the product."""


def expected(work: Work, tensors: dict[str, Tensor]) -> Tensor:
    """The product in float32 by the plain torch kernels, on the device of the tensors."""
    kernel = work.pattern().kernel
    module: Any = shift if kernel == "shift" else gather_gemm
    name = f"{'shift' if kernel == 'shift' else kernel}_{work.part}"
    wide = {k: t.float() if t.is_floating_point() else t for k, t in tensors.items()}
    result: Tensor = getattr(module, name)(*work.arguments(wide))
    return result


def check(work: Work, got: Tensor, want: Tensor) -> None:
    """Raise `WrongResultError` unless ``got`` is ``want`` up to two roundings of its dtype."""
    if got.shape != want.shape or not bool(torch.isfinite(got).all()):
        raise WrongResultError(f"{work}: shape {tuple(got.shape)}, or values that are not finite")
    error = (got.float() - want).abs().max().item()
    allowed = 2 * torch.finfo(got.dtype).eps * want.abs().max().item()
    if error > allowed:
        raise WrongResultError(f"{work}: off by {error:.3g}, allowed {allowed:.3g}")
