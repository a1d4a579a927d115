"""The calculated cost: arithmetic at a rate, or memory at a bandwidth, whichever takes longer."""

from __future__ import annotations

import torch

from padst_fx.cost.devices import Device
from padst_fx.cost.work import Work


def calculated_seconds(work: Work, tokens: int, dtype: torch.dtype, device: Device) -> float:
    """Seconds of one forward: its start, and the longer of arithmetic and memory traffic."""
    rates = device.rates(dtype)
    arithmetic = work.flops(tokens) / rates.flops(work)
    traffic = work.bytes_moved(tokens, dtype.itemsize) / rates.bandwidth
    return rates.start(work) + max(arithmetic, traffic)
