"""What an ONNX file holds for every sparse layer, for people."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from padst_fx.tables import render


@dataclass(frozen=True)
class Layer:
    """One sparse layer in the file.

    `form` says how it is computed: one of `padst_fx.export.onnx.forms.FORMS`, or the name of its
    op in the `padst` domain. `reason` says why. `stored` are the bytes of weights and index in the
    file, `dense` those of the dense weight.
    """

    name: str
    kernel: str
    out_features: int
    in_features: int
    form: str
    reason: str
    stored: int
    dense: int

    @property
    def share(self) -> float:
        """Stored bytes by those of the dense weight."""
        return self.stored / self.dense


@dataclass(frozen=True)
class Report:
    """A written ONNX model; printing it shows a table of its sparse layers.

    `files` are the model and, where it has them, its external data.
    """

    files: tuple[Path, ...]
    opset: int
    layers: tuple[Layer, ...]

    @property
    def path(self) -> Path:
        """The model's file."""
        return self.files[0]

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(path.stat().st_size for path in self.files)

    @property
    def share(self) -> float:
        """Stored bytes of all sparse layers by those of the dense weights; 1 without any."""
        dense = sum(layer.dense for layer in self.layers)
        return sum(layer.stored for layer in self.layers) / dense if dense else 1.0

    @property
    def counts(self) -> Counter[str]:
        """How many layers are computed in each form."""
        return Counter(layer.form for layer in self.layers)

    def __str__(self) -> str:
        forms = ", ".join(f"{count} {form}" for form, count in self.counts.items())
        title = f"{self.path}, opset {self.opset}: {forms or 'no sparse layers'}"
        columns = ("layer", "kernel", "shape", "form", "stored / dense", "because")
        rows = [
            (x.name, x.kernel, f"{x.out_features} x {x.in_features}", x.form, f"{x.share:.3f}",
             x.reason)
            for x in self.layers
        ]  # fmt: skip
        return render(title, columns, rows)
