"""A table of a model's sparse layers."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from padst_fx.compiled import plain_name, uncompiled
from padst_fx.layers.linear import SparseLinear
from padst_fx.tables import render


@dataclass(frozen=True)
class SummaryRow:
    """One sparse layer. `parameters` counts what it stores: weights, bias and DynaDiag's scores;
    `dense_parameters` a dense layer's weights and bias."""

    name: str
    role: str
    shape: tuple[int, int]
    structure: str
    sparsity: float
    parameters: int
    dense_parameters: int
    permutation: str
    kernel: str


@dataclass(frozen=True)
class Summary:
    """The sparse layers of a model; printing it shows a table."""

    rows: tuple[SummaryRow, ...]
    model_parameters: int

    @property
    def parameters(self) -> int:
        """Weights, biases and DynaDiag's scores that the sparse layers store."""
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
        columns = (
            "name", "role", "shape", "structure", "sparsity", "parameters", "permutation", "kernel"
        )  # fmt: skip
        return render(title, columns, (_cells(row) for row in self.rows))


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


def summary(model: nn.Module) -> Summary:
    """Name, role, shape, structure, sparsity, parameters, permutation and kernel per layer.

    A model inside `torch.compile`'s wrapper is shown as it is without. Raises `ValueError` for a
    model without sparse layers.
    """
    model = uncompiled(model)
    rows = tuple(
        _row(plain_name(name), module)
        for name, module in model.named_modules()
        if isinstance(module, SparseLinear)
    )
    if not rows:
        raise ValueError("nothing to summarise: the model has no SparseLinear")
    return Summary(rows, sum(parameter.numel() for parameter in model.parameters()))


def _row(name: str, layer: SparseLinear) -> SummaryRow:
    bias = 0 if layer.bias is None else layer.bias.numel()
    return SummaryRow(
        name=name,
        role=layer.role,
        shape=(layer.out_features, layer.in_features),
        structure=str(layer.pattern.structure),
        sparsity=layer.sparsity,
        parameters=sum(parameter.numel() for parameter in layer.parameters()),
        dense_parameters=layer.out_features * layer.in_features + bias,
        permutation=layer.permutation,
        kernel=layer.pattern.kernel,
    )
