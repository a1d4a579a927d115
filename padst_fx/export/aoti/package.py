"""From a trained model to a package: freeze, export, compile ahead of time, put together."""

from __future__ import annotations

import os
import shlex
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram

from padst_fx import backend
from padst_fx.compiled import uncompiled
from padst_fx.export.aoti.companions import put_companions
from padst_fx.export.source import check_ready, frozen_form
from padst_fx.export.target import check_target, written_together
from padst_fx.kernels.native import build
from padst_fx.kernels.native import isa as isas
from padst_fx.layers.linear import SparseLinear
from padst_fx.passes.projection_op import projection_ops
from padst_fx.projections.graph import arguments, exported

SUFFIX = ".pt2"

# What Inductor compiles its own code for, given instruction sets by name: -march and vector bits
# by the narrowest of them. Its 512-bit code takes more than avx512 stands for here.
_GENERIC = {
    "portable": ("x86-64", 1),
    "avx2": ("x86-64-v3", 256),
    "avx512": ("x86-64-v3", 256),
    "amx": ("x86-64-v3", 256),
}
_C_TYPES = {"Tensor": "AtenTensorHandle", "int": "int64_t", "str": "const char*"}


def export_aoti(
    model: nn.Module,
    example_inputs: Any,
    path: str | os.PathLike[str],
    dynamic_shapes: Any = None,
    *,
    isa: str | Sequence[str] | None = None,
    skip_slower: bool = True,
    options: Mapping[str, Any] | None = None,
) -> Path:
    """Compile a model ahead of time into a package that runs without Python; returns its path.

    The model is frozen (`padst_fx.freeze`, which takes `example_inputs`, `dynamic_shapes` and
    `skip_slower`), exported, compiled by AOTInductor with the passes of backend "padst", and put
    into one file together with the C++ kernels it calls. `torch._inductor.aoti_load_package` and,
    in C++, `torch::inductor::AOTIModelPackageLoader` load it, with the same version of torch.

    `isa` names the instruction sets (`padst_fx.kernels.native.isa.FLAGS`) that kernels are put in
    for, one or several; the widest that the processor has is chosen when the package is loaded.
    Without it the package is for processors like this one. `options` are those of the backend
    but for `inner`, `structure` and `sparsity`.

    Only the file at `path` is written, and only as a whole. Raises, before anything is written:
    `ValueError` for a path that does not end in ".pt2", a model in training mode, one that
    collects growth scores or has soft permutations, sparse layers elsewhere than on the CPU,
    example inputs that it cannot be exported with, and unknown names in `isa` or `options`;
    `TypeError` for what is no module; `OSError` for a path that cannot be written;
    `padst_fx.kernels.native.build.BuildError` where there is no C++ compiler.
    """
    check_ready(model)
    _check_devices(model)
    target = _check_path(path)
    names = _instruction_sets(isa)
    settings = _read_options(options)
    build.compiler()
    with written_together([target]) as places, tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        frozen = frozen_form(model, example_inputs, dynamic_shapes, skip_slower=skip_slower)
        args, kwargs = arguments(example_inputs)
        # The graph itself has the names of the arguments that dynamic shapes may be given by.
        program = exported(frozen.program, args, kwargs, dynamic_shapes)
        companions = put_companions(folder, names) if _calls_ops(program) else []
        configuration = {
            **backend.inductor_patches(settings, backend.pass_manager(settings)),
            **({} if isa is None else _generic(names[0])),
            **(_linked_with(companions[0]) if companions else {}),
            "aot_inductor.package": True,
            "aot_inductor.output_path": str(folder / "model"),
            "aot_inductor.metadata": {"PADST_FX_CPU_ISA": ",".join(names)},
        }
        _package(program, configuration, companions, places[target])
    return target


def _check_path(path: str | os.PathLike[str]) -> Path:
    target = check_target(path)
    if target.suffix != SUFFIX:
        raise ValueError(f"path must end in {SUFFIX}, got {str(target)!r}")
    return target


def _check_devices(model: nn.Module) -> None:
    for name, layer in uncompiled(model).named_modules():
        if isinstance(layer, SparseLinear) and layer.values.device.type != "cpu":
            raise ValueError(
                f"{name} is on {layer.values.device}: packages have the kernels of the CPU only, "
                "those for CUDA are launched by Python. Move the model with model.cpu(), or on a "
                "GPU use torch.compile(model, backend='padst')"
            )


def _instruction_sets(isa: str | Sequence[str] | None) -> list[str]:
    """The names, narrowest first."""
    if isa is None:
        chosen = isas.chosen()
        if chosen == "torch":
            raise ValueError(
                f"{isas.VARIABLE} is 'torch', but a package needs C++ kernels: unset it, or name "
                f"instruction sets in isa ({', '.join(isas.FLAGS)})"
            )
        return [chosen]
    names = {isa} if isinstance(isa, str) else set(isa)
    unknown = sorted(names - set(isas.FLAGS))
    if unknown or not names:
        raise ValueError(f"isa must be one or several of {', '.join(isas.FLAGS)}; got {isa!r}")
    return sorted(names, key=list(isas.FLAGS).index)


def _read_options(options: Mapping[str, Any] | None) -> backend.Settings:
    given = dict(options or {})
    for key in ("inner", "structure", "sparsity"):
        if key in given:
            raise ValueError(f"option {key} is not for packages: sparsify the model first")
    return backend.read_options(None, given)


def _calls_ops(program: ExportedProgram) -> bool:
    return any(node.target in projection_ops() for node in program.graph.nodes)


def _generic(narrowest: str) -> dict[str, Any]:
    march, bits = _GENERIC[narrowest]
    return {"cpp.march": march, "cpp.simdlen": bits}


def _linked_with(chooser: Path) -> dict[str, Any]:
    """Call our ops as C functions of a library that the loader finds beside the model."""
    shims = {op: [_declaration(op)] for op in sorted(projection_ops(), key=str)}
    # The one place where Inductor takes link flags: it writes each of these behind a -l.
    link = f":{chooser.name} -L{shlex.quote(str(chooser.parent))} -Wl,-rpath,'$ORIGIN'"
    return {
        "aot_inductor.custom_ops_to_c_shims": shims,
        "aot_inductor.custom_op_libs": [link],
    }


def _declaration(op: torch._ops.OpOverload) -> str:
    """The C function that stands for an op, as AOTInductor names and calls it."""
    schema = op._schema
    types = [_C_TYPES[str(argument.type)] for argument in schema.arguments]
    parameters = [f"{t} {a.name}" for t, a in zip(types, schema.arguments, strict=True)]
    name = f"aoti_torch_cpu_{schema.name.partition('::')[2]}"
    return f"AOTITorchError {name}({', '.join(parameters)}, AtenTensorHandle* result)"


@torch.no_grad()
def _package(
    program: ExportedProgram, configuration: dict[str, Any], companions: list[Path], file: Path
) -> None:
    from torch._inductor import aot_compile
    from torch._inductor.package import package_aoti

    assert program.example_inputs is not None
    args, kwargs = program.example_inputs
    module = program.module(check_guards=False)
    files = aot_compile(module, args, kwargs, options=configuration)
    assert isinstance(files, list)
    package_aoti(str(file), [*files, *map(str, companions)])
