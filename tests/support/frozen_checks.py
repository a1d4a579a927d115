"""Freezing a model and comparing it with itself."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import padst_fx
from padst_fx import SparseLinear


def sparse(
    in_features: int, out_features: int, structure: Any = "diag", seed: int = 0, **options: Any
) -> SparseLinear:
    """A sparse layer behind a random permutation, in float64."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return SparseLinear(
            in_features, out_features, structure, 0.5, permutation="random",
            dtype=torch.float64, **options,
        )  # fmt: skip


def frozen(model: nn.Module, *inputs: Tensor, **options: Any) -> padst_fx.freezing.FrozenModel:
    """The frozen model, which computes what the model does, on these inputs and on others."""
    model = model.double()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    result = padst_fx.freeze(model, inputs, skip_slower=False, **options)
    torch.manual_seed(1)
    others = tuple(torch.randn_like(x) if x.is_floating_point() else x.flip(-1) for x in inputs)
    for given in (inputs, others):
        torch.manual_seed(2)
        expected = model(*given)
        torch.manual_seed(2)
        assert_same(result(*given), expected)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), f"{name} was changed"
    assert gathers_in(result) == result.report.gathers
    return result


def assert_same(found: Any, expected: Any) -> None:
    """Equal but for the order of summation."""
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def gathers_in(model: padst_fx.freezing.FrozenModel) -> int:
    """Gathers by a constant index that really are in the graph."""
    return sum(
        node.target in (torch.ops.aten.index_select.default, torch.ops.aten.index.Tensor)
        for node in model.program.graph.nodes
    )


def reads_through(model: padst_fx.freezing.FrozenModel) -> int:
    """Sparse layers in the graph that still have a permutation."""
    from padst_fx.passes.projection_op import arguments, projection_ops

    count = 0
    for node in model.program.graph.nodes:
        if node.target in projection_ops():
            perm: Any = model.program
            for part in str(arguments(node)["perm"].target).split("."):
                perm = getattr(perm, part)
            count += perm.numel() > 0
    return count
