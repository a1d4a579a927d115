"""What lies beside an engine: how to feed it, and what it can be refitted with."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

ENDING = ".json"
WEIGHTS_ENDING = ".weights.safetensors"


@dataclass(frozen=True)
class Input:
    """An input: name, dtype, and its least, usual and largest shape, the same where static."""

    name: str
    dtype: str
    least: tuple[int, ...]
    usual: tuple[int, ...]
    largest: tuple[int, ...]

    @property
    def is_dynamic(self) -> bool:
        return self.least != self.largest


@dataclass(frozen=True)
class Record:
    """The library and version that built the engine, the model's inputs and outputs, what the
    export was asked for, a hash of the graph but for its weights, and the shapes of weights that
    are inputs."""

    library: str
    version: str
    through: str
    precision: str | None
    opset: int | None
    inputs: tuple[Input, ...]
    outputs: tuple[str, ...]
    capabilities: tuple[str, ...] = ()
    refit: str | None = None
    graph: str | None = None
    weights: dict[str, list[int]] = field(default_factory=dict)

    def text(self) -> str:
        """The record as it is stored."""
        return json.dumps(asdict(self), indent=1) + "\n"

    @classmethod
    def read(cls, engine: Path) -> Record:
        """The record of an engine. Raises `FileNotFoundError` where there is none."""
        path = beside(engine, ENDING)
        if not path.exists():
            raise FileNotFoundError(f"{engine} has no {path.name} beside it: export it anew")
        fields: dict[str, Any] = json.loads(path.read_text())
        for name in ("outputs", "capabilities"):
            fields[name] = tuple(fields[name])
        fields["inputs"] = tuple(Input(**_tuples(each)) for each in fields["inputs"])
        return cls(**fields)


def _tuples(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value
            for name, value in fields.items()}  # fmt: skip


def beside(engine: Path, ending: str) -> Path:
    """The path of a file that belongs to an engine."""
    return engine.with_name(engine.name + ending)
