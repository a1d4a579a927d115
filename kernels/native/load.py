"""Loading the C++ kernels into the process: from then on the dispatcher calls them on the CPU."""

from __future__ import annotations

import functools
import warnings

import torch

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
        torch.ops.load_library(str(build.library(wanted)))
    except (build.BuildError, OSError) as error:
        warnings.warn(
            f"padst_fx runs in plain torch on the CPU, which is slow: {error}"
            f"{f': {error.__cause__}' if error.__cause__ else ''}",
            stacklevel=2,
        )
        return False
    return True
