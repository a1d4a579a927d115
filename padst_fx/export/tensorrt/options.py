"""What an export to TensorRT can be asked for."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from padst_fx.export.tensorrt.precision import check_precision

ROUTES = ("onnx", "torch")
REFITS = ("inputs", "weights")


@dataclass(frozen=True)
class Options:
    """The options of `export_tensorrt`."""

    through: str = "onnx"
    library: str | None = None
    precision: str | None = None
    refit: str | None = None
    compute_capabilities: Sequence[str] | None = None
    timing_cache: str | os.PathLike[str] | None = None
    opset: int | None = None

    def check(self, model: Any) -> None:
        """Raise `ValueError` for values that are unknown or do not fit together."""
        if self.through not in ROUTES:
            raise ValueError(f"through must be one of {', '.join(ROUTES)}; got {self.through!r}")
        if self.refit is not None and self.refit not in REFITS:
            raise ValueError(
                f"refit must be one of {', '.join(REFITS)} or None; got {self.refit!r}"
            )
        check_precision(model, self.precision)
        if self.through == "torch":
            for name in ("library", "refit", "compute_capabilities", "opset"):
                if getattr(self, name) is not None:
                    raise ValueError(f"{name} is for through='onnx' alone: leave it out")
