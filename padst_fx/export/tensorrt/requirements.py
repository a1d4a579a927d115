"""What an export to TensorRT needs on this machine, checked before anything is computed."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from types import ModuleType

import torch

LIBRARIES = {"tensorrt": "tensorrt", "tensorrt_rtx": "tensorrt-rtx"}
ONNX = {"onnx": "onnx", "onnxscript": "onnxscript"}
TORCH = {"tensorrt": "tensorrt", "torch_tensorrt": "torch-tensorrt", "triton": "triton"}
BROKEN = "10.14."


@dataclass(frozen=True)
class Library:
    """An installed TensorRT: its module, and whether it is TensorRT-RTX."""

    module: ModuleType

    @property
    def name(self) -> str:
        return self.module.__name__

    @property
    def version(self) -> str:
        version: str = self.module.__version__
        return version

    @property
    def is_rtx(self) -> bool:
        """TensorRT-RTX builds without a GPU, for compute capabilities that it is told."""
        return hasattr(self.module, "ComputeCapability")


def library(name: str | None) -> Library:
    """The TensorRT of that name, or the one installed, TensorRT before TensorRT-RTX.

    Raises `ValueError` for a name that is none of `LIBRARIES`, and `ModuleNotFoundError` with the
    package to install.
    """
    if name is not None and name not in LIBRARIES:
        raise ValueError(f"library must be one of {', '.join(LIBRARIES)}; got {name!r}")
    names = list(LIBRARIES) if name is None else [name]
    present = [each for each in names if find_spec(each) is not None]
    if not present:
        packages = " or ".join(LIBRARIES[each] for each in names)
        raise ModuleNotFoundError(f"there is no TensorRT: pip install {packages}")
    return Library(importlib.import_module(present[0]))


def check_packages(packages: dict[str, str], extra: str) -> None:
    """Raise `ModuleNotFoundError` that names every package that is missing."""
    missing = [package for module, package in packages.items() if find_spec(module) is None]
    if missing:
        raise ModuleNotFoundError(
            f"engines of TensorRT need {' and '.join(missing)}: pip install 'padst_fx[{extra}]'"
        )


def check_gpu(purpose: str) -> None:
    """Raise `RuntimeError` where there is no CUDA device for the purpose."""
    if not torch.cuda.is_available():
        raise RuntimeError(f"{purpose} needs a CUDA device, and torch finds none")


def check_plugins(version: str) -> None:
    """Raise `RuntimeError` for a TensorRT that has no working plugins compiled ahead of time."""
    if version.startswith(BROKEN):
        raise RuntimeError(f"TensorRT {version} has broken plugins: install another version")
    if find_spec("tensorrt.plugin") is None:
        raise RuntimeError(f"TensorRT {version} has no tensorrt.plugin: version 10.8 or later has")


def capabilities(
    library: Library, asked: Sequence[str] | None
) -> tuple[str, ...]:
    """Members of `ComputeCapability` for versions such as "8.9"; none where none are asked for.

    Raises `ValueError` for one that the library cannot build for, or if it builds for the present
    GPU alone.
    """
    if not asked:
        return ()
    if not library.is_rtx:
        raise ValueError(
            f"{library.name} {library.version} builds for the GPU of this machine: leave "
            "compute_capabilities out, or use TensorRT-RTX"
        )
    members = library.module.ComputeCapability.__members__
    known = {f"{name[2:-1]}.{name[-1]}": name for name in members if name.startswith("SM")}
    unknown = [each for each in asked if each not in known]
    if unknown or isinstance(asked, str):
        raise ValueError(
            f"compute_capabilities must be a list of some of {', '.join(sorted(known))}; "
            f"got {asked!r}"
        )
    return tuple(known[each] for each in asked)
