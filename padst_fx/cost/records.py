"""Measured costs: one CSV file a machine, in `measurements/`."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from math import inf
from pathlib import Path

MEASUREMENTS = Path(__file__).parent / "measurements"


@dataclass(frozen=True)
class Record:
    """The median time of one forward, in microseconds.

    `device`, `kernels` and `threads` as in `Device`; `dtype` without "torch."; `structure` and
    `nonzeros` as in `Work`; `versions` says what measured it.
    """

    device: str
    kernels: str
    threads: int
    dtype: str
    structure: str
    out_features: int
    in_features: int
    nonzeros: int
    tokens: int
    microseconds: float
    versions: str = ""

    def __post_init__(self) -> None:
        sizes = (self.out_features, self.in_features, self.nonzeros, self.tokens)
        if min(sizes) < 1 or not 0 < self.microseconds < inf:
            raise ValueError(f"a measured cost needs positive sizes and a positive time: {self}")

    @property
    def key(self) -> tuple[object, ...]:
        """Everything but the time and what measured it."""
        return tuple(getattr(self, field.name) for field in fields(self)[:-2])


def read_records(folder: Path = MEASUREMENTS) -> list[Record]:
    """Every record of a folder."""
    return [record for path in sorted(folder.glob("*.csv")) for record in read_file(path)]


def read_file(path: Path) -> list[Record]:
    """The records of one file. Raises `ValueError` with file and line for one that is damaged."""
    kinds = {"int": int, "float": float, "str": str}
    records = []
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        for row in reader:
            try:
                known = {f.name: kinds[str(f.type)](row[f.name]) for f in fields(Record)}
                records.append(Record(**known))
            except (KeyError, TypeError, ValueError) as error:
                raise ValueError(f"{path}, line {reader.line_num}: {error!r}") from error
    return records


def write_records(records: Iterable[Record], folder: Path = MEASUREMENTS) -> list[Path]:
    """Put records into the files of their devices, in place of earlier ones of the same key."""
    folder.mkdir(parents=True, exist_ok=True)
    by_device: dict[str, dict[tuple[object, ...], Record]] = {}
    for record in records:
        by_device.setdefault(record.device, {})[record.key] = record
    paths = []
    for device, new in by_device.items():
        path = folder / f"{re.sub(r'[^a-z0-9]+', '-', device.lower()).strip('-')}.csv"
        old = {record.key: record for record in read_file(path)} if path.exists() else {}
        _write(path, sorted((old | new).values(), key=lambda record: record.key))
        paths.append(path)
    return paths


def _write(path: Path, records: list[Record]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [f.name for f in fields(Record)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(record) for record in records)
