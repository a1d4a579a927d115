"""What an engine holds, for people."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from padst_fx.export.tensorrt.record import Record
from padst_fx.tables import render


@dataclass(frozen=True)
class EngineLayer:
    """A sparse layer of the model: in which form it went to TensorRT, and why.

    `multiply_adds` for one token are those of the product with this layer's name in the network
    that TensorRT parsed, or None where it has no such product.
    """

    name: str
    out_features: int
    in_features: int
    form: str
    reason: str
    multiply_adds: int | None

    @property
    def share(self) -> float | None:
        """Multiply-adds by those of the dense product."""
        if self.multiply_adds is None:
            return None
        return self.multiply_adds / (self.out_features * self.in_features)


@dataclass(frozen=True)
class EngineReport:
    """A written engine; printing it shows a table of the model's sparse layers.

    `files` are the engine, its record, and the weights where they are inputs.
    """

    files: tuple[Path, ...]
    record: Record
    layers: tuple[EngineLayer, ...]

    @property
    def path(self) -> Path:
        """The engine's file."""
        return self.files[0]

    @property
    def size(self) -> int:
        """Bytes of the engine."""
        return self.path.stat().st_size

    def __str__(self) -> str:
        title = (
            f"{self.path}: {self.record.library} {self.record.version} through "
            f"{self.record.through}, {self.size:,} bytes"
        )
        columns = ("layer", "shape", "form", "multiply-adds / dense", "because")
        rows = [
            (x.name, f"{x.out_features} x {x.in_features}", x.form,
             "" if x.share is None else f"{x.share:.3f}", x.reason)
            for x in self.layers
        ]  # fmt: skip
        return render(title, columns, rows)
