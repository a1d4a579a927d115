"""A table of a model's sparse layers, with what they are predicted to cost."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import nn

from padst_fx.compiled import plain_name, uncompiled
from padst_fx.cost import Comparison, CostModel, Work, check_tokens, counted
from padst_fx.layers.linear import SparseLinear
from padst_fx.projections import find_projections
from padst_fx.tables import render

COLUMNS = (
    "name", "role", "shape", "structure", "sparsity", "parameters", "permutation", "kernel"
)  # fmt: skip
COST_COLUMNS = ("dense us", "sparse us", "gain", "source")


@dataclass(frozen=True)
class SummaryRow:
    """One sparse layer. `parameters` counts what it stores: weights, bias, DynaDiag's scores and
    the matrix of a soft permutation, whose product is in `cost` too; `dense_parameters` a dense
    layer's weights and bias."""

    name: str
    role: str
    shape: tuple[int, int]
    structure: str
    sparsity: float
    parameters: int
    dense_parameters: int
    permutation: str
    kernel: str
    cost: Comparison | None = None


@dataclass(frozen=True)
class Prediction:
    """What one forward of a model's projections is predicted to take, each of `tokens` rows.

    `dense_seconds` and `sparse_seconds` are of the sparse layers and of dense ones in their place;
    `remaining_seconds` of the `remaining` projections that stayed dense. Attention, norms,
    activations and whatever else the model does are in neither. `device` is the machine.
    """

    tokens: int
    device: str
    dense_seconds: float
    sparse_seconds: float
    remaining: int
    remaining_seconds: float

    @property
    def layers_gain(self) -> float:
        """Of the sparse layers alone: above 1 they are faster than dense ones."""
        return self.dense_seconds / self.sparse_seconds

    @property
    def gain(self) -> float:
        """Of all projections of the model together."""
        dense = self.dense_seconds + self.remaining_seconds
        return dense / (self.sparse_seconds + self.remaining_seconds)

    def __str__(self) -> str:
        lines = [
            f"one forward, {counted(self.tokens)}, on {self.device}: sparse layers "
            f"{_us(self.sparse_seconds)} us, dense ones in their place "
            f"{_us(self.dense_seconds)} us: {self.layers_gain:.2f}x"
        ]
        if self.remaining:
            lines.append(
                f"all projections, with those that stayed dense ({self.remaining}, "
                f"{_us(self.remaining_seconds)} us): {self.gain:.2f}x"
            )
        lines.append(
            f"predicted for projections, each at {counted(self.tokens)}; "
            "the rest of the model is not in it"
        )
        return "\n".join(lines)


@dataclass(frozen=True)
class Summary:
    """The sparse layers of a model; printing it shows a table."""

    rows: tuple[SummaryRow, ...]
    model_parameters: int
    prediction: Prediction | None = None

    @property
    def parameters(self) -> int:
        """Weights, biases, DynaDiag's scores and soft matrices that the sparse layers store."""
        return sum(row.parameters for row in self.rows)

    @property
    def dense_parameters(self) -> int:
        """Weights and biases that dense layers in their place would store."""
        return sum(row.dense_parameters for row in self.rows)

    def __str__(self) -> str:
        title = (
            f"{len(self.rows)} sparse layers: {self.parameters:,} parameters in place of "
            f"{self.dense_parameters:,}; {self.model_parameters:,} in the whole model"
        )
        if self.prediction is None:
            return render(title, COLUMNS, (_cells(row) for row in self.rows))
        rows = ((*_cells(row), *_cost_cells(row)) for row in self.rows)
        return f"{render(title, (*COLUMNS, *COST_COLUMNS), rows)}\n{self.prediction}"


def _cells(row: SummaryRow) -> tuple[str, ...]:
    return (
        row.name,
        row.role,
        f"{row.shape[0]} x {row.shape[1]}",
        row.structure,
        f"{row.sparsity:.4f}",
        f"{row.parameters:,}",
        row.permutation,
        row.kernel,
    )


def _cost_cells(row: SummaryRow) -> tuple[str, ...]:
    if row.cost is None:
        return ("",) * len(COST_COLUMNS)
    slower = " (dense is faster)" if row.cost.gain < 1 else ""
    return (
        _us(row.cost.dense.seconds),
        _us(row.cost.sparse.seconds),
        f"{row.cost.gain:.2f}{slower}",
        row.cost.source,
    )


def _us(seconds: float) -> str:
    return f"{seconds * 1e6:,.1f}"


def summary(model: nn.Module, tokens: int | None = None) -> Summary:
    """Name, role, shape, structure, sparsity, parameters, permutation and kernel per layer.

    With `tokens` also what one forward of that many rows is predicted to take, dense and sparse,
    on the machine and in the dtype that the layer is in, and how that is known: measured,
    interpolated, scaled or calculated (`padst_fx.cost.CostModel`); and the gain of all
    projections together.

    A model inside `torch.compile`'s wrapper is shown as it is without. Raises `ValueError` for
    `tokens` that is no positive integer and for a model without sparse layers.
    """
    if tokens is not None:
        tokens = check_tokens("tokens", tokens)
    model = uncompiled(model)
    layers = {
        plain_name(name): module
        for name, module in model.named_modules()
        if isinstance(module, SparseLinear)
    }
    if not layers:
        raise ValueError("nothing to summarise: the model has no SparseLinear")
    rows = tuple(_row(name, layer, tokens) for name, layer in layers.items())
    parameters = sum(parameter.numel() for parameter in model.parameters())
    if tokens is None:
        return Summary(rows, parameters)
    return Summary(rows, parameters, _prediction(model, rows, tokens))


def _row(name: str, layer: SparseLinear, tokens: int | None) -> SummaryRow:
    bias = 0 if layer.bias is None else layer.bias.numel()
    return SummaryRow(
        name=name,
        role=layer.role,
        shape=(layer.out_features, layer.in_features),
        structure=str(layer.pattern.structure),
        sparsity=layer.sparsity,
        parameters=sum(parameter.numel() for parameter in layer.parameters()),
        dense_parameters=layer.out_features * layer.in_features + bias,
        permutation=layer.permutation_state,
        kernel=layer.pattern.kernel,
        cost=None if tokens is None else _cost(layer, tokens),
    )


def _cost(layer: SparseLinear, tokens: int) -> Comparison:
    model, dtype = CostModel.of(layer.values.device), layer.values.dtype
    cost = model.compare(layer.pattern, tokens, dtype)
    if layer.soft_perm is None:
        return cost
    mixing = model.estimate(Work.dense(*layer.soft_perm.shape), tokens, dtype)
    sparse = replace(cost.sparse, seconds=cost.sparse.seconds + mixing.seconds)
    return replace(cost, sparse=sparse)


def _prediction(model: nn.Module, rows: tuple[SummaryRow, ...], tokens: int) -> Prediction:
    first = next(module for module in model.modules() if isinstance(module, SparseLinear))
    costs = CostModel.of(first.values.device)
    remaining = [Work.dense(*projection.shape) for projection in find_projections(model)]
    compared = [row.cost for row in rows if row.cost]
    return Prediction(
        tokens=tokens,
        device=str(costs.device),
        dense_seconds=sum(cost.dense.seconds for cost in compared),
        sparse_seconds=sum(cost.sparse.seconds for cost in compared),
        remaining=len(remaining),
        remaining_seconds=sum(
            costs.estimate(work, tokens, first.values.dtype).seconds for work in remaining
        ),
    )
