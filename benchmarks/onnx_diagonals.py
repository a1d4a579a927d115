"""Single diagonals in onnxruntime: a dense product against the ways to compute the diagonals alone.

A square layer, 90 % sparse, fp32, out of standard ONNX operators. Checked against float64.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import padst_fx
from benchmarks.measured import DENSE, Contestant, measure
from benchmarks.onnx_runtime import session
from benchmarks.settings import Settings
from benchmarks.structures import SPARSITY
from benchmarks.table import Row, Table, noise_note, ratio_cell

FEATURES, QUICK_FEATURES = (768, 3072), (768,)
TOKENS, QUICK_TOKENS = (1, 197), (1,)
ROUNDING = 1e-5


class Form(nn.Module):
    """A square layer: output `i` adds up `values[k, i] * x[(i + offsets[k]) mod D]`."""

    values: Tensor
    weight: Tensor
    features: Tensor

    def __init__(self, layer: padst_fx.SparseLinear) -> None:
        super().__init__()
        size, weight = layer.in_features, layer.dense_weight()
        # A square layer stores a diagonal by its inputs: input t goes to output t + o.
        offsets = (-layer.index.long()) % size
        place = torch.arange(size)
        features = (place + offsets[:, None]) % size
        self.offsets: list[int] = offsets.tolist()
        self.register_buffer("values", weight[place, features])
        self.register_buffer("weight", weight.t().contiguous())
        self.register_buffer("features", features.flatten())


class Product(Form):
    """With zeros."""

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight


class Slices(Form):
    """A slice, a product and a sum per diagonal."""

    def forward(self, x: Tensor) -> Tensor:
        twice = torch.cat([x, x], 1)
        terms = (
            values * twice[:, offset : offset + x.shape[1]]
            for values, offset in zip(self.values, self.offsets, strict=True)
        )
        return sum(terms, torch.zeros_like(x))


class Gathered(Form):
    """All terms of a token at once, `[tokens, K, D]`, and their sum."""

    def forward(self, x: Tensor) -> Tensor:
        terms = x.index_select(1, self.features).view(-1, *self.values.shape)
        return (terms * self.values).sum(1)


class GatheredRows(Form):
    """The same with features first: what is gathered is all tokens of a feature."""

    def forward(self, x: Tensor) -> Tensor:
        terms = x.t().index_select(0, self.features).view(*self.values.shape, -1)
        return (terms * self.values.unsqueeze(2)).sum(0).t()


FORMS: dict[str, type[Form]] = {
    DENSE: Product,
    "slices": Slices,
    "gathered": Gathered,
    "gathered, features first": GatheredRows,
}


def contestants(features: int, tokens: int, folder: Path) -> Iterator[Contestant]:
    """Every form of one layer."""
    torch.manual_seed(0)
    layer = padst_fx.SparseLinear(features, features, padst_fx.Diag(), SPARSITY, bias=False)
    x = torch.randn(tokens, features)
    exact = x.double() @ layer.dense_weight().double().t()
    for name, form in FORMS.items():
        call = _opened(form(layer), x, folder / f"{features} {tokens} {name}.onnx")
        yield Contestant(name, "onnxruntime", call, partial(_error, call, exact), {})


def _opened(form: Form, x: Tensor, path: Path) -> Callable[[], Tensor]:
    torch.onnx.export(form, (x,), path, dynamo=True, verbose=False, external_data=False)
    opened = session(path, torch.get_num_threads())
    (given,) = opened.get_inputs()
    inputs = {given.name: x.numpy()}
    return lambda: torch.from_numpy(opened.run(None, inputs)[0])


def _error(call: Callable[[], Tensor], exact: Tensor) -> float:
    """As a share of what rounding may do."""
    return float((call() - exact).abs().max() / (ROUNDING * exact.abs().max()))


@torch.no_grad()
def run(settings: Settings) -> Table:
    """Measure every form at one token and at a picture's."""
    rows: list[Row] = []
    for features in QUICK_FEATURES if settings.quick else FEATURES:
        for tokens in QUICK_TOKENS if settings.quick else TOKENS:
            facts: dict[str, Any] = {
                "features": features, "tokens": tokens, "onnxruntime": version("onnxruntime"),
            }  # fmt: skip
            with tempfile.TemporaryDirectory() as folder:
                found = list(contestants(features, tokens, Path(folder)))
                rows += measure(found, settings.rounds, facts)
    shown = [
        [str(row["features"]), str(row["tokens"]), row["structure"],
         f"{row['microseconds']:,.0f}" if row["status"] == "ok" else "", ratio_cell(row)]
        for row in rows
    ]  # fmt: skip
    return Table(
        name="onnx_diagonals",
        title="Diag() of square layers in onnxruntime, 90 % sparse, fp32: dense time by its own",
        rows=rows,
        shown=(["features", "tokens", "form", "us", "dense / own"], shown),
        notes=[noise_note(rows)],
    )
