"""Compiling the C++ kernels on the machine that runs them, once per sources and flags.

A finished library is kept under `cache_folder()` by a hash of everything that went into it, and so
are objects of what no instruction set changes, for the libraries of others. One process builds,
others wait for it; a file appears under its name only when it is complete.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from padst_fx.kernels.native import isa as isas

KERNELS = Path(__file__).resolve().parent.parent
COMMON_FLAGS = (
    "-O3", "-std=c++17", "-fPIC", "-fvisibility=hidden", "-fopenmp", "-fno-math-errno",
    "-fno-trapping-math",
)  # fmt: skip
# Sources of the loops; the others define torch ops, the same for every instruction set.
LOOPS = "cpu.cpp"
EXTRA_FLAGS_VARIABLE = "PADST_FX_CXXFLAGS"
CACHE_VARIABLE = "PADST_FX_CACHE"


class BuildError(RuntimeError):
    """The kernels could not be compiled; the message says why."""


def library(isa: str) -> Path:
    """The shared library of the kernels for an instruction set, built first where it is missing.

    Raises `BuildError` without a compiler, or with the compiler's own words where it fails.
    """
    path = cache_folder() / f"padst_fx_{isa}_{_key(_flags(isa))}.so"
    if path.exists():
        return path
    from filelock import FileLock  # where something is built, and not for every import

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")):
            if not path.exists():
                _build(isa, path)
    except OSError as error:
        raise BuildError(f"cannot build in {path.parent}: {error}") from error
    return path


def cache_folder() -> Path:
    """Where built libraries are kept: `$PADST_FX_CACHE`, else `~/.cache/padst_fx`."""
    if folder := os.environ.get(CACHE_VARIABLE):
        return Path(folder)
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(cache) / "padst_fx"


def compiler() -> list[str]:
    """The command of the C++ compiler: `$CXX`, else the first of c++, g++ and clang++ on the path.

    Raises `BuildError` where there is none, or `$CXX` names none.
    """
    if wanted := _words("CXX"):
        if not shutil.which(wanted[0]):
            raise BuildError(f"no C++ compiler found: CXX is {shlex.join(wanted)}")
        return wanted
    for name in ("c++", "g++", "clang++"):
        if found := shutil.which(name):
            return [found]
    raise BuildError("no C++ compiler found (looked for $CXX, c++, g++ and clang++)")


def sources() -> list[Path]:
    """Every C++ source of the kernels, in the order in which compiling them ends soonest."""

    def longest_first(path: Path) -> tuple[bool, int, Path]:
        return path.name != LOOPS, -path.stat().st_size, path

    return sorted(KERNELS.glob("*/*.cpp"), key=longest_first)


def _words(variable: str) -> list[str]:
    try:
        return shlex.split(os.environ.get(variable, ""))
    except ValueError as error:
        raise BuildError(f"cannot read {variable}: {error}") from error


def _extra_flags() -> list[str]:
    return _words(EXTRA_FLAGS_VARIABLE)


def _flags(isa: str | None) -> list[str]:
    """How sources are compiled for an instruction set, or (None) those that it does not change."""
    return [*COMMON_FLAGS, *(isas.FLAGS[isa] if isa else ()), *_extra_flags()]


def _key(flags: Sequence[str]) -> str:
    """A hash of sources, flags, torch's version and this file: the way they are compiled."""
    digest = hashlib.sha256()
    for path in [*sources(), *sorted(KERNELS.glob("*/*.h")), Path(__file__)]:
        digest.update(path.name.encode())
        digest.update(path.read_bytes())
    digest.update(repr((list(flags), torch.__version__, platform.machine())).encode())
    return digest.hexdigest()[:16]


def _build(isa: str, path: Path) -> None:
    with tempfile.TemporaryDirectory(dir=path.parent) as name:
        folder = Path(name)
        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            objects = list(pool.map(lambda source: _compiled(source, isa, folder), sources()))
        result = folder / path.name
        link = [*compiler(), "-shared", *_extra_flags(), *map(str, objects), *link_flags()]
        try:
            run([*link, "-o", str(result)])
        except BuildError:
            discard_objects()
            raise
        result.rename(path)


def _compiled(source: Path, isa: str, folder: Path) -> Path:
    """The object of a source: in a folder, or kept where no instruction set changes it."""
    name = f"{source.parent.name}_{source.stem}"
    if source.name == LOOPS:
        return _compile(source, _flags(isa), folder / f"{name}.o")
    flags = _flags(None)
    kept = _objects() / f"{name}_{_key(flags)}.o"
    if not kept.exists():
        kept.parent.mkdir(exist_ok=True)
        _compile(source, flags, folder / kept.name).replace(kept)
    return kept


def _compile(source: Path, flags: Sequence[str], target: Path) -> Path:
    run([*compiler(), *flags, *include_flags(), "-c", str(source), "-o", str(target)])
    return target


def _objects() -> Path:
    return cache_folder() / "objects"


def discard_objects() -> None:
    """Forget kept objects: one of them may be damaged."""
    shutil.rmtree(_objects(), ignore_errors=True)


def include_flags() -> list[str]:
    """The kernels' own headers, and torch's as those of a system: their warnings are not ours."""
    headers = Path(torch.__file__).parent / "include"
    own = ["-I", str(KERNELS), "-isystem", str(headers)]
    own += ["-isystem", str(headers / "torch" / "csrc" / "api" / "include")]
    return [*own, f"-D_GLIBCXX_USE_CXX11_ABI={int(torch._C._GLIBCXX_USE_CXX11_ABI)}"]


def link_flags() -> list[str]:
    """Torch's libraries, its own OpenMP first: two thread pools would fight for the cores."""
    folder = Path(torch.__file__).parent / "lib"
    openmp = [str(path) for path in sorted(folder.glob("libgomp*.so*"))]
    return [*(openmp or ["-fopenmp"]), f"-L{folder}", "-ltorch_cpu", "-lc10"]


def run(command: Sequence[str]) -> None:
    """Run a compiler; `BuildError` with its own words where it fails."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BuildError(f"{shlex.join(command)} failed:\n{done.stderr[-4000:]}")
