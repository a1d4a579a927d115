"""What a compiled graph depends on besides itself: the source text of the whole package."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path

SUFFIXES = (".py", ".cpp", ".h")


@functools.cache
def source_files() -> tuple[Path, ...]:
    """Every source file of `padst_fx`, its kernels and its passes, sorted."""
    import padst_fx
    import padst_fx.kernels
    import padst_fx.passes

    packages = (padst_fx, padst_fx.kernels, padst_fx.passes)
    roots = [Path(root).resolve() for package in packages for root in package.__path__]
    files = {file for root in roots for file in root.rglob("*") if file.suffix in SUFFIXES}
    return tuple(sorted(files))


@functools.cache
def hash_files(files: tuple[Path, ...]) -> str:
    """SHA-256 over the names and contents of `files`, computed once per process."""
    digest = hashlib.sha256()
    for file in files:
        content = file.read_bytes()
        digest.update(f"{file.name} {len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()
