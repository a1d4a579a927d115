"""Runs of the study, and grids of them as plain JSON."""

from __future__ import annotations

import itertools
import json
from dataclasses import MISSING, asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

DENSE = "dense"


@dataclass(frozen=True)
class Run:
    """One training. A structure is "dense" or as in `benchmarks.study.structures`.

    `permutation` is as in `sparsify`, `method` as in `DST`; a dense run has neither. `layers` are
    globs over the projections that are made sparse, `permuted` over those of them that are
    permuted; the others have the identity. `soft_weight` is that of `SoftPermutation`, `soft_rate`
    the matrices' learning rate, by default the run's. `size` scales the task's model.
    """

    task: str
    structure: str
    permutation: str
    method: str
    sparsity: float
    seed: int
    steps: int
    learning_rate: float
    size: int
    delta_t: int = 50
    drop_fraction: float = 0.3
    distribution: str = "uniform"
    harden_at: float = 0.5
    layers: str = "*"
    permuted: str = "*"
    soft_weight: float = 1.0
    soft_rate: float | None = None
    compiled: bool = False

    @property
    def key(self) -> str:
        """What tells this run from all others."""
        return json.dumps(asdict(self))

    @property
    def timed_as(self) -> str:
        """What runs have in common that take equal time."""
        return replace(self, seed=0, steps=0, learning_rate=0.0).key

    @property
    def name(self) -> str:
        """A few words for the progress bar."""
        words = (self.task, self.structure, self.permutation, self.method, f"{self.sparsity:g}")
        return f"{' '.join(word for word in words if word)} #{self.seed}"


def read(path: Path) -> list[Run]:
    """All runs of a grid file, in its order, each once.

    A file is `{"defaults": {...}, "learning_rates": {task: {structure: rate}}, "grids": [{...}]}`;
    every value of a grid may be a list, and the grid is the product. Raises `ValueError` for
    fields that a run does not have or lacks.
    """
    content = json.loads(path.read_text())
    rates = content.get("learning_rates", {})
    found: dict[str, Run] = {}
    for grid in content["grids"]:
        for chosen in _product({**content.get("defaults", {}), **grid}):
            if chosen.get("structure") == DENSE:
                chosen |= {"permutation": "", "method": "", "sparsity": 0.0}
            if "learning_rate" not in chosen:
                by_structure = rates.get(chosen.get("task"), {})
                family = str(chosen.get("structure")).split("(")[0]
                if family in by_structure:
                    chosen["learning_rate"] = by_structure[family]
            run = _run(chosen, path)
            found.setdefault(run.key, run)
    return list(found.values())


def _product(grid: dict[str, Any]) -> list[dict[str, Any]]:
    values = [value if isinstance(value, list) else [value] for value in grid.values()]
    return [dict(zip(grid, chosen, strict=True)) for chosen in itertools.product(*values)]


def _run(chosen: dict[str, Any], path: Path) -> Run:
    known = {field.name for field in fields(Run)}
    needed = {field.name for field in fields(Run) if field.default is MISSING}
    if unknown := sorted(chosen.keys() - known):
        raise ValueError(f"{path}: a run has no {', '.join(unknown)}; it has {sorted(known)}")
    if lacking := sorted(needed - chosen.keys()):
        raise ValueError(f"{path}: {chosen} lacks {', '.join(lacking)}")
    return Run(**chosen)
