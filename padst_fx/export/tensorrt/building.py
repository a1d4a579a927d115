"""An engine from an ONNX model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from padst_fx.export.tensorrt.arithmetic import multiply_adds
from padst_fx.export.tensorrt.record import Input
from padst_fx.export.tensorrt.requirements import Library


@dataclass(frozen=True)
class Settings:
    """How an engine is built: flags of the builder, members of `ComputeCapability`, and a timing
    cache's content, empty for a new one and None for none."""

    flags: tuple[str, ...] = ()
    capabilities: tuple[str, ...] = ()
    timing_cache: bytes | None = None


@dataclass(frozen=True)
class Engine:
    """A built engine, and what its network looked like before it was optimized."""

    data: bytes
    timing_cache: bytes | None
    outputs: tuple[str, ...]
    multiply_adds: dict[str, int]


class Messages:
    """What TensorRT complains about while it works."""

    def __init__(self, library: Library) -> None:
        self.lines: list[str] = []
        module, lines = library.module, self.lines

        class Logger(module.ILogger):  # type: ignore[name-defined]
            def __init__(self) -> None:
                module.ILogger.__init__(self)

            def log(self, severity: Any, text: str) -> None:
                if severity <= module.ILogger.Severity.ERROR:
                    lines.append(text)

        self.logger = Logger()

    def raise_for(self, what: str, library: Library) -> None:
        """Raise `RuntimeError` with all of them."""
        said = "; ".join(self.lines) or "it gave no reason"
        raise RuntimeError(f"{library.name} {library.version} could not {what}: {said}")


def build(
    library: Library, model: bytes, inputs: tuple[Input, ...], settings: Settings
) -> Engine:
    """Parse and build. Raises `RuntimeError` with TensorRT's own messages."""
    trt, messages = library.module, Messages(library)
    builder = trt.Builder(messages.logger)
    network = _parsed(library, messages, builder, model)
    config = builder.create_builder_config()
    for flag in settings.flags:
        config.set_flag(getattr(trt.BuilderFlag, flag))
    if settings.capabilities:
        config.num_compute_capabilities = len(settings.capabilities)
        for number, name in enumerate(settings.capabilities):
            config.set_compute_capability(getattr(trt.ComputeCapability, name), number)
    if any(each.is_dynamic for each in inputs):
        config.add_optimization_profile(_profile(builder, inputs))
    cache = None
    if settings.timing_cache is not None:
        cache = config.create_timing_cache(settings.timing_cache)
        config.set_timing_cache(cache, ignore_mismatch=False)
    data = builder.build_serialized_network(network, config)
    if data is None:
        messages.raise_for("build the engine", library)
    return Engine(
        data=bytes(data),
        timing_cache=None if cache is None else bytes(cache.serialize()),
        outputs=tuple(network.get_output(number).name for number in range(network.num_outputs)),
        multiply_adds=multiply_adds(network),
    )


def _parsed(library: Library, messages: Messages, builder: Any, model: bytes) -> Any:
    """The network; TensorRT-RTX and TensorRT 11 have strongly typed ones alone."""
    trt = library.module
    typed = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if typed is None else 1 << int(typed))
    parser = trt.OnnxParser(network, messages.logger)
    if not parser.parse(model):
        messages.lines.extend(parser.get_error(n).desc() for n in range(parser.num_errors))
        messages.raise_for("read the ONNX model", library)
    return network


def _profile(builder: Any, inputs: tuple[Input, ...]) -> Any:
    profile = builder.create_optimization_profile()
    for each in inputs:
        if each.is_dynamic:
            profile.set_shape(each.name, each.least, each.usual, each.largest)
    return profile
