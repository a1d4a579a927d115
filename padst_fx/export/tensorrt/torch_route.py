"""Through Torch-TensorRT to an engine whose sparse layers are this package's own kernels."""

from __future__ import annotations

import importlib
import os
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from padst_fx.compiled import uncompiled
from padst_fx.export.source import frozen_form
from padst_fx.export.target import check_target
from padst_fx.export.tensorrt import requirements
from padst_fx.export.tensorrt.files import check_engine_path, write
from padst_fx.export.tensorrt.options import Options
from padst_fx.export.tensorrt.plugin import KERNELS, NAMESPACE
from padst_fx.export.tensorrt.precision import in_precision
from padst_fx.export.tensorrt.profile import profile
from padst_fx.export.tensorrt.record import ENDING, Input, Record, beside
from padst_fx.export.tensorrt.report import EngineLayer, EngineReport
from padst_fx.passes.projection_op import projection_ops
from padst_fx.projections.graph import arguments, exported

PURPOSE = "export_tensorrt with through='torch'"


def export_through_torch(
    model: nn.Module,
    example_inputs: Any,
    path: str | os.PathLike[str],
    dynamic_shapes: Any,
    options: Options,
) -> EngineReport:
    """See `export_tensorrt`."""
    requirements.check_packages(requirements.TORCH, "torch-tensorrt")
    requirements.check_gpu(PURPOSE)
    trt = importlib.import_module("tensorrt")
    requirements.check_plugins(trt.__version__)
    target = check_engine_path(path)
    cache = None if options.timing_cache is None else check_target(options.timing_cache)
    _check_device(model, example_inputs)
    model, example_inputs = in_precision(model, example_inputs, options.precision)
    program_module = frozen_form(model, example_inputs, dynamic_shapes).program
    program = exported(program_module, *arguments(example_inputs), dynamic_shapes)
    names = [spec.arg.name for spec in program.graph_signature.input_specs]
    inputs = profile(program, [name for name in names if name in _user_inputs(program)])
    device = torch.device("cuda", torch.cuda.current_device())
    _register(device)
    data = _engine(program, example_inputs, inputs, cache)
    record = Record(
        library=trt.__name__,
        version=trt.__version__,
        through="torch",
        precision=options.precision,
        opset=None,
        inputs=inputs,
        outputs=tuple(program.graph_signature.user_outputs),
    )
    files = write({target: data, beside(target, ENDING): record.text().encode()})
    return EngineReport(files, record, _layers(program))


def _check_device(model: nn.Module, example_inputs: Any) -> None:
    tensors = [*uncompiled(model).parameters(), *pytree.tree_leaves(example_inputs)]
    elsewhere = {t.device.type for t in tensors if isinstance(t, Tensor)} - {"cuda"}
    if elsewhere:
        raise ValueError(
            f"{PURPOSE} needs model and example_inputs on a CUDA device, some are on "
            f"{', '.join(sorted(elsewhere))}"
        )


def _user_inputs(program: ExportedProgram) -> set[str]:
    return set(program.graph_signature.user_inputs)


def _register(device: torch.device) -> None:
    """Make plugins and converters known; TensorRT keeps them for the life of the process."""
    from padst_fx.export.tensorrt.converter import register_converters
    from padst_fx.export.tensorrt.plugin import register

    trtp = importlib.import_module("tensorrt.plugin")
    registry = importlib.import_module("tensorrt.plugin._lib").QDP_REGISTRY
    if not all(f"{NAMESPACE}::{kernel}" in registry for kernel in KERNELS):
        register(trtp, torch.cuda.get_device_capability)
        conversion = "torch_tensorrt.dynamo.conversion"
        converters = importlib.import_module(f"{conversion}._ConverterRegistry")
        constants = importlib.import_module(f"{conversion}.converter_utils")
        register_converters(
            trtp, converters.dynamo_tensorrt_converter, constants.get_trt_tensor, device
        )


def _engine(
    program: ExportedProgram, example_inputs: Any, inputs: tuple[Input, ...], cache: Any
) -> bytes:
    """The engine; `min_block_size` and the rest of partitioning play no part in it."""
    torch_tensorrt = importlib.import_module("torch_tensorrt")
    args, kwargs = arguments(example_inputs)
    leaves, spec = pytree.tree_flatten((args, kwargs))
    described = iter(inputs)
    args, kwargs = pytree.tree_unflatten(
        [_described(torch_tensorrt, next(described)) if isinstance(leaf, Tensor) else leaf
         for leaf in leaves],
        spec,
    )  # fmt: skip
    caching = {} if cache is None else {"timing_cache_path": str(cache)}
    data: bytes = torch_tensorrt.dynamo.convert_exported_program_to_serialized_trt_engine(
        program, arg_inputs=args, kwarg_inputs=kwargs, require_full_compilation=True, **caching
    )
    return data


def _described(torch_tensorrt: Any, each: Input) -> Any:
    dtype = getattr(torch, each.dtype)
    if not each.is_dynamic:
        return torch_tensorrt.Input(each.usual, dtype=dtype)
    return torch_tensorrt.Input(
        min_shape=each.least, opt_shape=each.usual, max_shape=each.largest, dtype=dtype
    )


def _layers(program: ExportedProgram) -> tuple[EngineLayer, ...]:
    """The sparse layers, each of which is this package's own kernel."""
    signature = program.graph_signature
    parameters = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    found = []
    for node in program.graph.nodes:
        if node.target in projection_ops():
            values = node.args[1]
            name = parameters.get(values.name, values.name).rpartition(".")[0]
            found.append(EngineLayer(
                name, node.meta["val"].shape[-1], node.args[0].meta["val"].shape[-1],
                node.target.name().partition("::")[2].partition(".")[0],
                "this package's kernel, as a plugin", values.meta["val"].numel(),
            ))  # fmt: skip
    return tuple(found)
