"""The calculated cost: arithmetic at a rate, or memory at a bandwidth, whichever takes longer."""

from __future__ import annotations

import torch

from padst_fx.cost.devices import Device
from padst_fx.cost.work import Work


def calculated_seconds(work: Work, tokens: int, dtype: torch.dtype, device: Device) -> float:
    """Seconds of one forward: its start, and the longer of arithmetic and memory traffic.

    Where a sparse weight may be written out as a dense matrix (on GPUs, in 16 bits) it takes no
    longer than that and the dense product.
    """
    rates = device.rates(dtype)
    arithmetic = work.flops(tokens) / rates.flops(work)
    traffic = work.bytes_moved(tokens, dtype.itemsize) / rates.bandwidth
    own = rates.start(work) + max(arithmetic, traffic)
    if work.is_dense or not rates.through_dense:
        return own
    dense = Work.dense(work.out_features, work.in_features)
    written = 2 * dense.nonzeros * dtype.itemsize / rates.bandwidth
    return min(own, written + calculated_seconds(dense, tokens, dtype, device))
