"""Compiling exactly what a launch would run, for GPUs that are not there.

The launch functions run on meta tensors with their ``launch`` replaced, so that kernels, constants
and argument specialisation are those of the real call.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

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


@dataclass
class Launch:
    """One recorded launch."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: tuple[Tensor | int, ...]
    constants: dict[str, Any] = field(default_factory=dict)

    def source(self) -> ASTSource:
        """The kernel specialised as the just-in-time compiler would for these arguments."""
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
                signature[name] = "i32"
                if argument % 16 == 0:
                    attributes[(position,)] = [["tt.divisibility", 16]]
        signature |= {k: "constexpr" for k in self.constants if k not in OPTIONS}
        assert signature.keys() == set(names), set(names) ^ signature.keys()
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


def recorded(
    monkeypatch: pytest.MonkeyPatch, module: ModuleType, call: Callable[[], Tensor]
) -> list[Launch]:
    """The launches of ``call``, none of which is run."""
    launches: list[Launch] = []
    monkeypatch.setattr(
        module,
        "launch",
        lambda kernel, grid, *arguments, **constants: launches.append(
            Launch(kernel, grid, arguments, constants)
        ),
    )
    call()
    return launches


def compiled(launch: Launch, arch: int, folder: Path) -> Binary:
    """``launch`` compiled for compute capability ``arch``."""
    options = {k: v for k, v in launch.constants.items() if k in OPTIONS}
    target = GPUTarget("cuda", arch, 32)
    binary = triton.compile(launch.source(), target=target, options=options)
    path = folder / "kernel.cubin"
    path.write_bytes(binary.asm["cubin"])
    tool = triton.knobs.nvidia.cuobjdump.path
    report = subprocess.run(
        [tool, "-res-usage", str(path)], check=True, capture_output=True, text=True
    ).stdout
    usage = {key: int(value) for key, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", report)}
    return Binary(
        binary.asm["ptx"], binary.metadata.shared, usage["REG"], usage["STACK"], usage["LOCAL"]
    )
