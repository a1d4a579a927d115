"""Compiling exactly what a launch would run, for GPUs that are not there.

The launch functions run on meta tensors with `triton_call.launch` replaced, so that kernels,
constants and argument specialisation are those of the real call.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from padst_fx.kernels import triton_call

TYPES = {
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.float32: "fp32",
    torch.float64: "fp64",
    torch.uint8: "u8",
    torch.int32: "i32",
    torch.int64: "i64",
}
OPTIONS = ("num_warps", "num_stages")
SHARED_LIMIT = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}
MATRIX_INSTRUCTIONS = ("mma.sync", "wgmma.mma_async", "tcgen05.mma")


@dataclass(frozen=True)
class Launch:
    """One recorded launch."""

    kernel: Any
    programs: int
    arguments: tuple[Tensor | int, ...]
    constants: dict[str, Any]

    @property
    def name(self) -> str:
        name: str = self.kernel.__name__
        return name

    def source(self) -> Any:
        """The kernel specialised as the just-in-time compiler would for these arguments."""
        from triton.compiler import ASTSource

        signature: dict[str, str] = {}
        constants = {k: v for k, v in self.constants.items() if k not in OPTIONS}
        attributes = {}
        names = self.kernel.arg_names
        for position, argument in enumerate(self.arguments):
            name = names[position]
            if isinstance(argument, Tensor):
                signature[name] = "*" + TYPES[argument.dtype]
                attributes[(position,)] = [["tt.divisibility", 16]]
            elif argument == 1:
                signature[name] = "constexpr"
                constants[name] = 1
            else:
                signature[name] = "i32" if abs(argument) < 2**31 else "i64"
                if argument % 16 == 0:
                    attributes[(position,)] = [["tt.divisibility", 16]]
        signature |= {k: "constexpr" for k in self.constants if k not in OPTIONS}
        if signature.keys() != set(names):
            raise ValueError(f"{self.name}: arguments {set(names) ^ signature.keys()} do not match")
        ordered = {name: signature[name] for name in names}
        return ASTSource(self.kernel, ordered, constexprs=constants, attrs=attributes)


@dataclass(frozen=True)
class Binary:
    """What the assembler made of a kernel."""

    ptx: str
    shared: int
    registers: int
    stack: int
    local: int

    @property
    def has_matrix_instructions(self) -> bool:
        return any(instruction in self.ptx for instruction in MATRIX_INSTRUCTIONS)

    def wide_loads(self) -> int:
        """Instructions that bring 128 bits from global memory to a thread, or to shared memory."""
        loads = re.findall(r"ld\.global[.\w:]*\.(?:v4\.b32|v2\.b64)", self.ptx)
        copies = re.findall(r"cp\.async\.cg\.shared\.global[^;]*, 0x10", self.ptx)
        return len(loads) + len(copies)

    def wide_stores(self) -> int:
        """Instructions that store 128 bits of a thread to global memory."""
        return len(re.findall(r"st\.global[.\w:]*\.(?:v4\.b32|v2\.b64)", self.ptx))


def recorded(call: Callable[[], Tensor]) -> list[Launch]:
    """The launches of ``call``, none of which is run."""
    launches: list[Launch] = []

    def record(kernel: Any, programs: int, *arguments: Any, **constants: Any) -> None:
        launches.append(Launch(kernel, programs, arguments, constants))

    with mock.patch.object(triton_call, "launch", record):
        call()
    return launches


def compiled(launch: Launch, arch: int) -> Binary:
    """``launch`` compiled for compute capability ``arch``."""
    import triton
    from triton.backends.compiler import GPUTarget

    options = {k: v for k, v in launch.constants.items() if k in OPTIONS}
    target = GPUTarget("cuda", arch, 32)
    binary = triton.compile(launch.source(), target=target, options=options)
    usage = _usage(binary.asm["cubin"])
    return Binary(
        binary.asm["ptx"], binary.metadata.shared, usage["REG"], usage["STACK"], usage["LOCAL"]
    )


def _usage(cubin: bytes) -> dict[str, int]:
    """Registers, stack and local memory of a binary."""
    import triton

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        command = [triton.knobs.nvidia.cuobjdump.path, "-res-usage", str(path)]
        report = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return {key: int(value) for key, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", report)}
