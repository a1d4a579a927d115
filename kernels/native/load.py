"""Loading the C++ kernels into the process: from then on the dispatcher calls them on the CPU."""

from __future__ import annotations

import ctypes
import functools
import warnings

from padst_fx.kernels.native import build, isa


@functools.cache
def loaded() -> bool:
    """Whether the C++ kernels serve the CPU; the first call builds them if need be.

    Where they cannot be built, one warning says why and plain torch goes on computing.
    """
    wanted = isa.chosen()
    if wanted == "torch":
        return False
    try:
        _load(wanted)
    except (build.BuildError, OSError) as error:
        warnings.warn(
            f"padst_fx runs in plain torch on the CPU, which is slow: {error}"
            f"{f': {error.__cause__}' if error.__cause__ else ''}",
            stacklevel=2,
        )
        return False
    return True


def _load(wanted: str) -> None:
    """Load the library; one that cannot be loaded is taken for damaged and built once more."""
    path = build.library(wanted)
    try:
        library = ctypes.CDLL(str(path))
    except OSError:
        path.unlink(missing_ok=True)
        build.discard_objects()
        library = ctypes.CDLL(str(build.library(wanted)))
    library.padst_register()
