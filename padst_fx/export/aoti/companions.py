"""The libraries that lie beside a packaged model: the kernels, and what chooses among them."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch

from padst_fx.kernels.native import build, isa

CHOOSER = Path(__file__).with_name("chooser.cpp")
FLAGS = ("-O2", "-std=c++17", "-fPIC", "-shared", "-fvisibility=hidden")


def put_companions(folder: Path, isas: Sequence[str]) -> list[Path]:
    """The libraries for instruction sets, in a folder; the first is the one to link with.

    Their names do not end in `.so`: the loader of packages takes such a file for the model.
    Raises `BuildError` without a compiler.
    """
    widest_first = sorted(isas, key=list(isa.FLAGS).index, reverse=True)
    kernels = {name: build.library(name) for name in widest_first}
    copies = [Path(shutil.copy2(path, folder / f"{path.name}.1")) for path in kernels.values()]
    variants = ", ".join(
        f'{{"{name}", "{copy.name}"}}' for name, copy in zip(kernels, copies, strict=True)
    )
    # One name in a process is one library: another choice of kernels has another name.
    key = f"{variants} {torch.__version__}".encode() + CHOOSER.read_bytes()
    chooser = folder / f"libpadst_fx_{hashlib.sha256(key).hexdigest()[:16]}.so.1"
    build.run(
        [
            *build.compiler(), *FLAGS, f"-DPADST_VARIANTS={variants}", str(CHOOSER),
            *build.include_flags(), "-o", str(chooser), f"-Wl,-soname,{chooser.name}",
            "-Wl,-z,nodelete", *build.link_flags(), "-ldl",
        ]
    )  # fmt: skip
    return [chooser, *copies]
