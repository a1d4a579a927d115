"""Every projection op on its own, against dense: forward, input gradient, weight gradient.

Forward runs eagerly and compiled, beside a dense layer of a tenth of the outputs, eager; dense
gradients are matrix products, eager, as compiling a single one changes nothing. fp32, inputs and
outputs token by token, weights as they are stored.
A second table has the forwards in bfloat16 whose products go to tile registers where there are any.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

import padst_fx
from benchmarks import plots, torch_formats
from benchmarks.compiled import compiled
from benchmarks.gradient_ops import input_gradient, weight_gradient
from benchmarks.measured import DENSE, Contestant, DoesNotRun, measure
from benchmarks.settings import Settings
from benchmarks.structures import QUICK, SPARSITY, STRUCTURES
from benchmarks.table import Row, Table, noise_note, ratio_cell

SHAPES = ((768, 768), (3072, 768), (768, 3072), (4096, 4096))
TOKENS = (1, 16, 197, 1024)
QUICK_SHAPES = ((768, 768), (3072, 768))
QUICK_TOKENS = (1, 197)
PARTS = ("forward", "input gradient", "weight gradient")
TILED = ("Diag(width=32)", "Block(32)")
TILED_TOKENS = (197, 1024)
# A dense layer of as many weights as the sparse ones: what torch's own code makes of so few.
TENTH = "dense, a tenth"
# Rows of outputs that are compared, and the rounding allowed: a share of sum |x| |w|.
CHECKED_ROWS = 64
ROUNDING = {torch.float32: 1e-5, torch.bfloat16: 1e-2}


@dataclass(frozen=True)
class Case:
    """One shape and number of tokens: the layers, their input and the gradient at their output."""

    dense: nn.Linear
    tenth: nn.Linear
    sparse: dict[str, padst_fx.SparseLinear]
    x: Tensor
    grad: Tensor

    @classmethod
    def of(
        cls,
        out: int,
        inputs: int,
        tokens: int,
        names: list[str],
        dtype: torch.dtype = torch.float32,
    ) -> Case:
        torch.manual_seed(0)
        sparse = {
            name: padst_fx.SparseLinear(inputs, out, STRUCTURES[name], SPARSITY).to(dtype)
            for name in names
        }
        return cls(
            nn.Linear(inputs, out, dtype=dtype),
            nn.Linear(inputs, round(out * (1 - SPARSITY)), dtype=dtype),
            sparse,
            torch.randn(tokens, inputs, dtype=dtype),
            torch.randn(tokens, out, dtype=dtype),
        )

    def contestants(self, part: str) -> list[Contestant]:
        makers = {
            "forward": self._forward,
            "input gradient": self._input_gradient,
            "weight gradient": self._weight_gradient,
        }
        return list(makers[part]())

    def _forward(self) -> Iterator[Contestant]:
        for name, layer, weight in self._layers():
            check = partial(_rows_error, weight.t(), layer.bias, self.x)
            extra = {"sparsity": _sparsity(layer)}
            backend = "inductor" if name == DENSE else "padst"
            calls = {"eager": layer, "compiled": compiled(layer, backend)}
            for mode, function in calls.items():
                call = partial(function, self.x)
                yield Contestant(name, mode, call, partial(_checked, check, call), extra)
        call = partial(self.tenth, self.x)
        check = partial(_rows_error, self.tenth.weight.t(), self.tenth.bias, self.x)
        yield Contestant(TENTH, "eager", call, partial(_checked, check, call), {"sparsity": None})
        for name, make in torch_formats.FORMATS.items():
            yield _torch_format(name, make, self.dense, self.x)

    def _input_gradient(self) -> Iterator[Contestant]:
        for name, layer, weight in self._layers():
            check = partial(_rows_error, weight, None, self.grad)
            if isinstance(layer, padst_fx.SparseLinear):
                call = input_gradient(layer, self.grad)
            else:
                call = partial(torch.mm, self.grad, layer.weight)
            extra = {"sparsity": _sparsity(layer)}
            yield Contestant(name, "eager", call, partial(_checked, check, call), extra)

    def _weight_gradient(self) -> Iterator[Contestant]:
        exact = self.grad.double().t() @ self.x.double()
        scale = self.grad.double().abs().t() @ self.x.double().abs()
        for name, layer, _ in self._layers():
            if isinstance(layer, padst_fx.SparseLinear):
                call = weight_gradient(layer, self.grad, self.x)
                mine = [layer.pattern.values_from_dense(of, layer.index) for of in (exact, scale)]
            else:
                call = partial(torch.mm, self.grad.t(), self.x)
                mine = [exact, scale]
            check = partial(_error, *mine)
            extra = {"sparsity": _sparsity(layer)}
            yield Contestant(name, "eager", call, partial(_checked, check, call), extra)

    def _layers(self) -> Iterator[tuple[str, padst_fx.SparseLinear | nn.Linear, Tensor]]:
        yield DENSE, self.dense, self.dense.weight.detach()
        for name, layer in self.sparse.items():
            yield name, layer, layer.dense_weight()


def _torch_format(
    name: str, make: Callable[[Tensor], Tensor], dense: nn.Linear, x: Tensor
) -> Contestant:
    """One of torch's own sparse formats, on the strongest weights of the dense layer."""
    made: list[Callable[[], Tensor]] = []

    def check() -> float:
        try:
            kept, call = torch_formats.prepare(make, dense, x)
            error = _rows_error(kept.t(), dense.bias, x, call())
        except (RuntimeError, NotImplementedError, ValueError) as reason:
            raise DoesNotRun(str(reason).splitlines()[0]) from reason
        made.append(call)
        return error

    return Contestant(name, "eager", lambda: made[0](), check, {"sparsity": None})


def _checked(check: Callable[[Tensor], float], call: Callable[[], Tensor]) -> float:
    return check(call())


def _rows_error(weight: Tensor, bias: Tensor | None, x: Tensor, y: Tensor) -> float:
    """Error of `y = x @ weight + bias` in rows of all its parts, a share of what is allowed."""
    if y.shape != (len(x), weight.shape[1]):
        return float("inf")
    rows = torch.arange(len(x))
    if len(x) > CHECKED_ROWS:
        rows = torch.linspace(0, len(x) - 1, CHECKED_ROWS).round().long()
    inputs, weights = x[rows].double(), weight.double()
    exact, scale = inputs @ weights, inputs.abs() @ weights.abs()
    if bias is not None:
        exact, scale = exact + bias.double(), scale + bias.double().abs()
    return _error(exact, scale, y[rows])


def _error(exact: Tensor, scale: Tensor, y: Tensor) -> float:
    """The largest error as a share of what rounding may do; infinite for a wrong shape or NaN."""
    if y.shape != exact.shape:
        return float("inf")
    share = (y.double() - exact).abs() / (ROUNDING[y.dtype] * scale + torch.finfo(y.dtype).tiny)
    return float(share.nan_to_num(nan=torch.inf).max())


def _sparsity(layer: nn.Module) -> float:
    return round(layer.sparsity, 4) if isinstance(layer, padst_fx.SparseLinear) else 0.0


@torch.no_grad()
def run(settings: Settings) -> Table:
    """Measure every shape, number of tokens and part."""
    names = settings.choose(STRUCTURES, QUICK)
    shapes, tokens = (QUICK_SHAPES, QUICK_TOKENS) if settings.quick else (SHAPES, TOKENS)
    rows: list[Row] = []
    for out, inputs in shapes:
        for count in tokens:
            case = Case.of(out, inputs, count, names)
            for part in PARTS:
                facts = {"part": part, "out": out, "in": inputs, "tokens": count}
                rows += measure(case.contestants(part), settings.rounds, facts)
            torch.compiler.reset()
    return Table(
        name="kernels",
        title="dense time by sparse time, one layer, 90 % sparse, fp32 (above 1: sparse is faster)",
        rows=rows,
        shown=_shown(rows),
        draw=partial(plots.ratio_against_tokens, rows, PARTS),
        notes=[*dense_wins(rows), noise_note(rows)],
    )


@torch.no_grad()
def run_bfloat16(settings: Settings) -> Table:
    """Measure the forwards in bfloat16 of the structures whose blocks fill tile registers."""
    names = [name for name in settings.choose(TILED, TILED) if name in TILED]
    shapes, tokens = (QUICK_SHAPES, TILED_TOKENS[:1]) if settings.quick else (SHAPES, TILED_TOKENS)
    rows: list[Row] = []
    for out, inputs in shapes:
        for count in tokens:
            case = Case.of(out, inputs, count, names, torch.bfloat16)
            facts = {"part": "forward", "out": out, "in": inputs, "tokens": count}
            facts["dtype"] = "bfloat16"
            forwards = case.contestants("forward")
            contestants = [c for c in forwards if c.structure in (DENSE, TENTH, *names)]
            rows += measure(contestants, settings.rounds, facts)
            torch.compiler.reset()
    return Table(
        name="kernels-bf16",
        title="dense time by sparse time, one layer, 90 % sparse, bf16 (above 1: sparse is faster)",
        rows=rows,
        shown=_shown(rows),
        draw=partial(plots.ratio_against_tokens, rows, ("forward",)),
        notes=[*dense_wins(rows), noise_note(rows)],
    )


def dense_wins(rows: list[Row]) -> list[str]:
    """A line per part and structure that dense beats somewhere, eager against eager: where."""
    places: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        ours = row["structure"] in STRUCTURES and row["mode"] == "eager"
        if ours and row["status"] == "ok" and row["ratio"] < 1:
            place = f"{row['out']} x {row['in']} at {row['tokens']} ({row['ratio']:.2f})"
            places.setdefault((row["part"], row["structure"]), []).append(place)
    found = [f"{part}, {name}: {', '.join(where)}" for (part, name), where in places.items()]
    return ["dense wins, by out x in and tokens:", *found] if found else ["dense wins nowhere"]


def _shown(rows: list[Row]) -> tuple[list[str], list[list[str]]]:
    """A line per part, mode, shape and number of tokens; a column per contestant."""
    names = list(dict.fromkeys(row["structure"] for row in rows))
    lines: dict[tuple[object, ...], dict[str, Row]] = {}
    for row in rows:
        key = (row["part"], row["mode"], f"{row['out']} x {row['in']}", row["tokens"])
        lines.setdefault(key, {})[row["structure"]] = row
    cells = [
        [*map(str, key), _microseconds(line.get(DENSE)), *(ratio_cell(line.get(n)) for n in names)]
        for key, line in sorted(lines.items(), key=lambda item: _order(item[0]))
    ]
    return ["part", "mode", "out x in", "tokens", "dense us", *names], cells


def _order(key: tuple[object, ...]) -> tuple[object, ...]:
    part, mode, _, _ = key
    return PARTS.index(str(part)), str(mode)


def _microseconds(row: Row | None) -> str:
    return f"{row['microseconds']:,}" if row and row["status"] == "ok" else ""
