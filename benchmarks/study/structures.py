"""The structures of the study, by the names that grids use."""

from __future__ import annotations

from padst_fx import NM, Block, Diag, Structure, Unstructured

STRUCTURES: dict[str, Structure] = {
    "Unstructured()": Unstructured(),
    "Diag()": Diag(),
    **{f"Diag(width={width})": Diag(width=width) for width in (2, 4, 8, 16, 32)},
    **{f"Diag(run={run})": Diag(run=run) for run in (2, 4, 8)},
    **{f"Block({size})": Block(size) for size in (2, 4, 8, 16)},
    "NM(1, 10)": NM(1, 10),
    "NM(1, 20)": NM(1, 20),
    "NM(1, 5)": NM(1, 5),
    "NM(2, 5)": NM(2, 5),
}
