"""Instruction sets that the C++ kernels are compiled for, and the widest one of this machine."""

from __future__ import annotations

import os
import platform

import torch

_AVX512 = ("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx2", "-mfma", "-mf16c")
FLAGS: dict[str, tuple[str, ...]] = {
    "portable": (),
    "avx2": ("-mavx2", "-mfma", "-mf16c"),
    "avx512": _AVX512,
    "amx": (*_AVX512, "-mavx512bf16", "-mamx-tile", "-mamx-bf16"),
}
VARIABLE = "PADST_FX_CPU_ISA"


def chosen() -> str:
    """The set to use: the environment's `PADST_FX_CPU_ISA`, else the widest one there is.

    "torch" in the variable means no C++ at all. Raises `ValueError` for an unknown name.
    """
    wanted = os.environ.get(VARIABLE) or widest()
    if wanted not in FLAGS and wanted != "torch":
        raise ValueError(f"{VARIABLE} must be one of torch, {', '.join(FLAGS)}; got {wanted!r}")
    return wanted


def widest() -> str:
    """The widest instruction set that this machine's processor and torch both know."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return "portable"
    if torch.cpu._is_amx_tile_supported():
        return "amx"
    return {"AVX512": "avx512", "AVX2": "avx2"}.get(
        torch.backends.cpu.get_cpu_capability(), "portable"
    )
