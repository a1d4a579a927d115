"""What a call costs where there is next to nothing to compute: layers of 16 x 16 at one token.

Modules, and the functions that they call, dense and sparse, in turn; no gradients.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

import padst_fx
from benchmarks.settings import Settings
from benchmarks.table import Row, Table
from benchmarks.timing import interleaved

FEATURES, CALLS = 16, 500
STRUCTURES: dict[str, padst_fx.Structure] = {
    "Diag()": padst_fx.Diag(),
    "Block(4)": padst_fx.Block(4),
    "NM(1, 4)": padst_fx.NM(1, 4),
}
SPARSITY = 0.75


def contestants() -> dict[tuple[str, str], Callable[[], object]]:
    """Calls by what they are of and how they are made."""
    torch.manual_seed(0)
    x, linear = torch.randn(1, FEATURES), nn.Linear(FEATURES, FEATURES)
    found: dict[tuple[str, str], Callable[[], object]] = {
        ("dense", "function"): partial(F.linear, x, linear.weight, linear.bias),
        ("dense", "module"): partial(linear, x),
    }
    for name, structure in STRUCTURES.items():
        sparsity = None if isinstance(structure, padst_fx.NM) else SPARSITY
        layer = padst_fx.SparseLinear(FEATURES, FEATURES, structure, sparsity)
        assert layer.bias is not None
        tensors = (layer.values, layer.index, layer.perm, layer.bias)
        found[name, "function"] = partial(layer.pattern.linear, x, *tensors)
        found[name, "module"] = partial(layer, x)
    return found


def _many(call: Callable[[], object]) -> Callable[[], None]:
    def calls() -> None:
        for _ in range(CALLS):
            call()

    return calls


@torch.no_grad()
def run(settings: Settings) -> Table:
    """Microseconds of each, and less those of its dense counterpart."""
    chosen = {
        key: _many(call)
        for key, call in contestants().items()
        if key[0] in ("dense", *(settings.only or STRUCTURES))
    }
    timed = interleaved({str(key): call for key, call in chosen.items()}, settings.rounds)
    times = dict(zip(chosen, timed.values(), strict=True))
    rows: list[Row] = []
    for (name, form), own in times.items():
        more = own.median - times["dense", form].median
        seconds = {
            "microseconds": own.median,
            "more_than_dense": more,
            **dict(zip(("low_us", "high_us"), own.quartiles, strict=True)),
        }
        columns = {column: round(1e6 * each / CALLS, 3) for column, each in seconds.items()}
        rows.append({"structure": name, "call": form, **columns})
    return Table(
        name="call_cost",
        title=f"a call of a layer of {FEATURES} x {FEATURES}, one token",
        rows=rows,
        shown=(list(rows[0]), [[str(value) for value in row.values()] for row in rows]),
    )
