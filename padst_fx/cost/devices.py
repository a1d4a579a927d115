"""The machine that a cost is for: its name, its threads, and how fast its kind roughly is."""

from __future__ import annotations

import functools
import platform
from dataclasses import dataclass
from pathlib import Path

import torch

from padst_fx.cost.work import Work
from padst_fx.kernels.native import isa, load


@dataclass(frozen=True)
class Rates:
    """What a kind of machine reaches, all of it together.

    `matrix` is the floating-point operations a second of a large dense product, `vector` those
    of code without matrix units, and `shares` the part of these that our kernels' inner loops
    leave room for, by family of work; `bandwidth` is bytes a second. `call` and `dense_call` are
    the seconds that an op of ours and a dense one take to start. `through_dense`: whether a
    sparse product may write its weight out and take the dense one.
    """

    matrix: float
    vector: float
    shares: dict[str, float]
    bandwidth: float
    call: float
    dense_call: float
    through_dense: bool = False

    def flops(self, work: Work) -> float:
        """Floating-point operations a second on this work."""
        if work.is_dense:
            return self.matrix
        on_vectors = self.vector * self.shares[work.family]
        if work.family == "tiles" and self.matrix > self.vector:
            return max(on_vectors, self.matrix * MATRIX_SHARE * min(1.0, work.width / FULL_TILE))
        return on_vectors

    def start(self, work: Work) -> float:
        """Seconds before any of it is done."""
        return self.dense_call if work.is_dense else self.call


# Of a library's rate that our kernels reach on matrix units, and the rows that fill one.
MATRIX_SHARE, FULL_TILE = 0.5, 64


@dataclass(frozen=True)
class Device:
    """A machine by name.

    `kind` is the widest instruction set ("avx512") or the compute capability ("sm_90"), `kernels`
    what our ops run: an instruction set, "torch" without a C++ compiler, or "triton". `threads`
    counts a CPU's; it is 0 for a GPU.
    """

    name: str
    kind: str
    kernels: str
    threads: int

    def rates(self, dtype: torch.dtype) -> Rates:
        """What this kind of machine reaches in a dtype."""
        return _cpu_rates(self, dtype) if self.threads else _gpu_rates(self, dtype)

    def __str__(self) -> str:
        plain = " (plain torch kernels)" if self.kernels == "torch" else ""
        threads = f", {self.threads} thread{'s' if self.threads > 1 else ''}"
        return self.name + (threads if self.threads else "") + plain


# Of one core: fp32 operations a second, and bytes.
CPU_CORE = {
    "amx": (150e9, 27e9),
    "avx512": (80e9, 12e9),
    "avx2": (60e9, 12e9),
    "portable": (20e9, 10e9),
}
CPU_BANDWIDTH = 200e9
CPU_CALL, CPU_DENSE_CALL = 8e-6, 5e-6
CPU_SHARES = {"diagonals": 0.55, "tiles": 0.7, "slots": 0.5}
# What plain torch makes of them, with its many small calls.
TORCH_SHARES = {"diagonals": 0.07, "tiles": 0.15, "slots": 0.025}
TORCH_CALL = 300e-6
AMX_BFLOAT16 = 6.0


def _cpu_rates(device: Device, dtype: torch.dtype) -> Rates:
    plain = device.kernels == "torch"
    halved = device.threads / (2 if dtype.itemsize == 8 else 1)
    flops, bandwidth = CPU_CORE[device.kind]
    own, _ = CPU_CORE[device.kind if plain else device.kernels]
    on_matrices = device.kind == "amx" and dtype == torch.bfloat16
    return Rates(
        matrix=halved * flops * (AMX_BFLOAT16 if on_matrices else 1),
        vector=halved * own,
        shares=TORCH_SHARES if plain else CPU_SHARES,
        bandwidth=min(device.threads * bandwidth, CPU_BANDWIDTH),
        call=TORCH_CALL if plain else CPU_CALL,
        dense_call=CPU_DENSE_CALL,
    )


# By compute capability: fp32 and 16-bit operations a second of a large product, and bytes.
GPU = {
    "sm_80": (15e12, 230e12, 1.5e12),
    "sm_90": (45e12, 600e12, 2.6e12),
    "sm_100": (55e12, 1300e12, 6.0e12),
}
GPU_CALL = 8e-6
GPU_SHARES = {"diagonals": 0.4, "tiles": 0.4, "slots": 0.2}


def _gpu_rates(device: Device, dtype: torch.dtype) -> Rates:
    vector, matrix, bandwidth = GPU[device.kind]
    if dtype.itemsize > 2:
        matrix = vector
    half = 2 if dtype.itemsize == 8 else 1
    calls, through_dense = (GPU_CALL, GPU_CALL), dtype.itemsize == 2
    return Rates(matrix / half, vector / half, GPU_SHARES, bandwidth, *calls, through_dense)


def device_of(device: torch.device) -> Device:
    """A CUDA device of this machine, or its CPU for a device of any other type.

    For the CPU it loads the C++ kernels, to know whether it can: the first time, they are built.
    """
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        known = [kind for kind in GPU if int(kind[3:]) <= major * 10 + minor]
        kind = known[-1] if known else "sm_80"
        return Device(torch.cuda.get_device_name(device), kind, "triton", 0)
    kernels = isa.chosen() if load.loaded() else "torch"
    return Device(cpu_name(), isa.widest(), kernels, torch.get_num_threads())


@functools.cache
def cpu_name() -> str:
    """The processor's name where the system tells it, with family and model."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    facts: dict[str, str] = {}
    for line in lines:
        key, _, value = line.partition(":")
        facts.setdefault(key.strip(), value.strip())
    if "model name" not in facts:
        return platform.processor() or platform.machine()
    if "cpu family" not in facts:
        return facts["model name"]
    return f"{facts['model name']} (family {facts['cpu family']}, model {facts['model']})"
