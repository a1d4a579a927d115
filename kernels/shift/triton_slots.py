"""For every offset which active diagonal it is, made on the device."""

from __future__ import annotations

import torch
from torch import Tensor

from padst_fx.kernels import triton_call
from padst_fx.kernels.integers import ceil_div

_kernels = triton_call.imported_late("padst_fx.kernels.shift.triton_kernels")


def diagonal_slots(offsets: Tensor, long: int) -> Tensor:
    """For each of ``long`` offsets its position in ``offsets``, or -1: [long] int32."""
    slots = torch.empty(long, dtype=torch.int32, device=offsets.device)
    triton_call.launch(
        _kernels().diagonal_slots_kernel,
        ceil_div(long, 64),
        offsets.contiguous(),
        offsets.shape[0],
        long,
        slots,
        BLOCK=64,
        BLOCK_K=64,
    )
    return slots
