"""A step compiled ahead of time, with exactly the parameters that a TensorRT plugin passes."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import torch

from padst_fx.export.tensorrt.expression import Expression, is_multiple
from padst_fx.export.tensorrt.step import Step
from padst_fx.kernels.triton_ahead_of_time import OPTIONS, Launch

# Triton appends pointers to scratch memory, which these kernels never use.
HIDDEN = 2
WARP = 32
ALIGNED = 16


@dataclass(frozen=True)
class CompiledStep:
    """A kernel's name in its PTX, the PTX, threads of a program and bytes of shared memory."""

    name: str
    ptx: str
    threads: int
    shared: int


def passed(step: Step) -> tuple[Expression, ...]:
    """The integers that remain arguments: the compiler makes a constant of every 1."""
    return tuple(integer for integer in step.integers if integer != 1)


def compile_step(step: Step, capability: tuple[int, int]) -> CompiledStep:
    """The step compiled for a compute capability; needs no GPU.

    Raises `RuntimeError` where the compiled entry does not take inputs, integers and outputs in
    that order and number, which is all that a plugin can pass.
    """
    import triton
    from triton.backends.compiler import GPUTarget

    arch = capability[0] * 10 + capability[1]
    options = {key: value for key, value in step.constants.items() if key in OPTIONS}
    target = GPUTarget("cuda", arch, WARP)
    binary = triton.compile(_source(step), target=target, options=options)
    metadata = binary.metadata
    count = len(step.reads) + len(passed(step)) + len(step.results)
    ptx = without_hidden_parameters(binary.asm["ptx"], metadata.name, count, _scratch(metadata))
    return CompiledStep(metadata.name, ptx, metadata.num_warps * WARP, metadata.shared)


def _source(step: Step) -> Any:
    """What the just-in-time compiler would be given, but nothing is known of a symbol's value."""
    tensors = [torch.empty(0, dtype=dtype, device="meta") for dtype in step.dtypes]
    results = [tensors[0] for _ in step.results]
    integers = [_typical(integer) for integer in step.integers]
    return Launch(step.kernel, 0, (*tensors, *integers, *results), step.constants).source()


def _typical(expression: Expression) -> int:
    """An integer of which the same is known: whether 16 divides it, and that it is not always 1."""
    if isinstance(expression, int):
        return expression
    return 2 * ALIGNED if is_multiple(expression, ALIGNED) else ALIGNED + 1


def _scratch(metadata: Any) -> int:
    """Bytes of scratch memory that a launch would have to bring."""
    return metadata.global_scratch_size + (getattr(metadata, "profile_scratch_size", 0) or 0)


def parameters(ptx: str, name: str) -> list[str]:
    """The types of an entry's parameters, in order: `u64` for pointers, `u32` for integers."""
    return [declared.split()[0][1:] for declared in _declarations(ptx, name)]


def _declarations(ptx: str, name: str) -> list[str]:
    entry = re.search(rf"\.entry\s+{re.escape(name)}\s*\((.*?)\)", ptx, re.DOTALL)
    if entry is None:
        raise RuntimeError(f"the compiled code has no entry {name}")
    listed = entry.group(1).split(".param")[1:]
    return [" ".join(declared.strip().rstrip(",").split()) for declared in listed]


def without_hidden_parameters(ptx: str, name: str, count: int, scratch: int) -> str:
    """`ptx` whose entry takes `count` parameters, the last `HIDDEN` ones removed if it has more.

    TensorRT passes what a plugin declares and nothing else. Raises `RuntimeError` where the entry
    has another number of parameters, needs `scratch` memory, or reads one of those removed.
    """
    declared = _declarations(ptx, name)
    extra = declared[count:]
    if scratch or len(declared) < count or len(extra) not in (0, HIDDEN):
        raise RuntimeError(
            f"{name} has {len(declared)} parameters and {scratch} bytes of scratch memory, a plugin"
            f" passes {count} and none: this version of Triton cannot be used for plugins"
        )
    for declaration in extra:
        symbol = declaration.split()[-1]
        if len(re.findall(rf"\b{re.escape(symbol)}\b", ptx)) != 1:
            raise RuntimeError(f"{name} reads its parameter {symbol}, which a plugin cannot pass")
        ptx = re.sub(rf",?\s*\.param[^,()]*\b{re.escape(symbol)}\b", "", ptx)
    return ptx
