"""Finding a model's linear and attention projections, and the role each plays."""

from __future__ import annotations

from typing import Any

from torch import nn

from padst_fx.projections.projection import ROLES, Projection

__all__ = ["ROLES", "Projection", "find_projections"]


def find_projections(model: nn.Module, example_inputs: Any = None) -> list[Projection]:
    """Every projection of `model`, in module registration order. Nothing is changed.

    Without `example_inputs` the roles come from the names and the structure of the module tree.
    With them (a tensor, a tuple of arguments, or a dict of keyword arguments) the model is exported
    and the roles come from the graph alone: every weight is followed to its matmul and on to
    attention, activations and outputs. Raises TypeError for a model or inputs of another type, and
    ValueError when the model cannot be exported with them.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if example_inputs is None:
        from padst_fx.projections.tree import from_tree

        return from_tree(model)
    from padst_fx.projections.graph import from_graph

    return from_graph(model, example_inputs)
