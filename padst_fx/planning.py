"""What `sparsify` would do: every projection of a model, replaced or left dense, and why."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from padst_fx import distribution as distributions
from padst_fx import selection
from padst_fx.distribution import Distribution
from padst_fx.initialization import check_init, choose_init
from padst_fx.layers.attention import split_projections
from padst_fx.layers.dense import DenseForm
from padst_fx.layers.linear import SparseLinear
from padst_fx.permutation import check_permutation
from padst_fx.projections import Projection, find_projections
from padst_fx.structures import NM, Pattern, Structure, StructureError, parse_structure
from padst_fx.structures.base import check_sparsity
from padst_fx.tables import render


@dataclass(frozen=True)
class PlanEntry:
    """One projection: the pattern and start it gets, or the reason why it stays dense."""

    projection: Projection
    pattern: Pattern | None = None
    init: str | None = None
    reason: str | None = None


@dataclass(frozen=True)
class Plan:
    """Every projection of a model in order of registration. Printing it shows a table."""

    entries: tuple[PlanEntry, ...]
    permutation: str

    @property
    def replaced(self) -> list[PlanEntry]:
        """The projections that become sparse."""
        return [entry for entry in self.entries if entry.pattern is not None]

    @property
    def skipped(self) -> list[PlanEntry]:
        """The projections that stay dense, each with its reason."""
        return [entry for entry in self.entries if entry.pattern is None]

    @property
    def sparsity(self) -> float:
        """Sparsity over all replaced projections together."""
        dense = sum(out * inputs for out, inputs in (e.projection.shape for e in self.replaced))
        active = sum(entry.pattern.nonzeros for entry in self.replaced if entry.pattern)
        return 1 - active / dense if dense else 0.0

    def __iter__(self) -> Iterator[PlanEntry]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def __str__(self) -> str:
        rows = [_row(entry) for entry in self.entries]
        title = (
            f"{len(self.replaced)} of {len(self)} projections become sparse "
            f"({self.sparsity:.2%} of their weights are dropped, permutation: {self.permutation})"
        )
        return render(title, ("name", "role", "shape", "structure", "sparsity", "start"), rows)


def _row(entry: PlanEntry) -> tuple[str, ...]:
    out, inputs = entry.projection.shape
    named = (entry.projection.name, entry.projection.role, f"{out} x {inputs}")
    if entry.pattern is None:
        return (*named, "dense", "", entry.reason or "")
    return (*named, str(entry.pattern.structure), f"{entry.pattern.sparsity:.4f}", entry.init or "")


def plan(
    model: nn.Module,
    structure: str | Structure,
    sparsity: float | None = None,
    *,
    permutation: str = "identity",
    distribution: Distribution = "uniform",
    include: selection.Selectors = None,
    exclude: selection.Selectors = None,
    init: str = "auto",
    example_inputs: Any = None,
) -> Plan:
    """What `sparsify` with the same arguments would do; changes nothing.

    Heads, tied weights and everything `exclude` matches stay dense, as does what `include`
    does not match if it is given; a head is replaced when `include` has its very name. Raises
    `ValueError` for unknown names and values out of range, for a model without a projection to
    replace, for one already sparsified, and for a projection asked for by its very name (in
    `include` or as a key of `distribution`) that cannot be had.
    """
    wanted = parse_structure(structure)
    if not (isinstance(wanted, NM) and wanted.n is not None and sparsity is None):
        check_sparsity(sparsity)
    check_permutation(permutation)
    distributions.check_distribution(distribution)
    check_init(init)
    included = selection.normalise("include", include)
    excluded = selection.normalise("exclude", exclude)
    refuse_sparsified(model)
    choose = _Chooser(model, wanted, sparsity, distribution, included, excluded)
    entries = [choose(projection) for projection in find_projections(model, example_inputs)]
    if distribution == "erk":
        entries = _erk(entries, wanted, check_sparsity(sparsity))
    if not any(entry.pattern for entry in entries):
        raise ValueError(_nothing(entries))
    weights = _weights(model)
    started = [
        replace(entry, init=choose_init(init, weights(entry.projection)))
        if entry.pattern
        else entry
        for entry in entries
    ]
    return Plan(tuple(started), permutation)


def refuse_sparsified(model: nn.Module) -> None:
    """Raise `ValueError` if the model has a sparse layer."""
    for name, module in model.named_modules():
        if isinstance(module, SparseLinear):
            raise ValueError(
                f"the model is already sparsified: {name or type(module).__name__} is a "
                "SparseLinear; call padst_fx.densify(model) first"
            )


@dataclass(frozen=True)
class _Chooser:
    """Decides for one projection at a time."""

    model: nn.Module
    structure: Structure
    sparsity: float | None
    distribution: Distribution
    included: tuple[selection.Selector, ...]
    excluded: tuple[selection.Selector, ...]

    def __call__(self, projection: Projection) -> PlanEntry:
        named = self._asked_for(projection.name)
        if reason := self._unavailable(projection):
            if named:
                raise ValueError(f"{projection.name} was asked for by name, but {reason}")
            return PlanEntry(projection, reason=reason)
        if reason := self._unwanted(projection, named):
            return PlanEntry(projection, reason=reason)
        sparsity = distributions.layer_sparsity(self.distribution, projection, self.sparsity)
        if sparsity is None and not isinstance(self.structure, NM):
            return PlanEntry(projection, reason="its sparsity is None in the distribution")
        try:
            pattern = self.structure.bind(*projection.shape, sparsity)
        except StructureError as error:
            if named:
                raise StructureError(f"{projection.name}: {error}") from error
            return PlanEntry(projection, reason=str(error))
        except ValueError as error:
            raise ValueError(f"{projection.name}: {error}") from error
        return PlanEntry(projection, pattern)

    def _asked_for(self, name: str) -> bool:
        keys = self.distribution if isinstance(self.distribution, dict) else ()
        return selection.names_it(self.included, name) or name in keys

    def _unavailable(self, projection: Projection) -> str | None:
        if projection.name == "":
            return "the model is itself the projection; use SparseLinear.from_dense"
        if projection.unsupported:
            return projection.unsupported
        if projection.tied_with:
            return f"its weight is tied with {projection.tied_with}"
        return None

    def _unwanted(self, projection: Projection, named: bool) -> str | None:
        module = self.model.get_submodule(projection.owner)
        if selection.matches(self.excluded, module, projection.name):
            return "excluded"
        if self.included and not selection.matches(self.included, module, projection.name):
            return "not included"
        if projection.role == "head" and not named:
            return "a head; it stays dense unless include names it"
        return None


def _erk(entries: list[PlanEntry], structure: Structure, sparsity: float) -> list[PlanEntry]:
    if isinstance(structure, NM) and structure.n is not None:
        raise ValueError(
            f"distribution='erk' needs a free count, but {structure} fixes n; use NM() or 'uniform'"
        )
    chosen = [i for i, entry in enumerate(entries) if entry.pattern]
    patterns = [pattern for entry in entries if (pattern := entry.pattern)]
    shapes = [(pattern.out_features, pattern.in_features) for pattern in patterns]
    densities = distributions.erk_densities(shapes, 1 - sparsity)
    budget = round((1 - sparsity) * sum(out * inputs for out, inputs in shapes))
    result = list(entries)
    for i, pattern in zip(chosen, distributions.balance(patterns, densities, budget), strict=True):
        result[i] = replace(entries[i], pattern=pattern)
    return result


def _nothing(entries: list[PlanEntry]) -> str:
    if not entries:
        return "nothing to sparsify: the model has no linear or attention projection"
    reasons = "; ".join(f"{entry.projection.name}: {entry.reason}" for entry in entries[:8])
    more = f"; and {len(entries) - 8} more" if len(entries) > 8 else ""
    return f"nothing to sparsify: every projection stays dense ({reasons}{more})"


def _weights(model: nn.Module) -> Callable[[Projection], Tensor]:
    """A function that gives a projection's dense `[out, in]` weight."""

    @torch.no_grad()
    def weight(projection: Projection) -> Tensor:
        owner = model.get_submodule(projection.owner)
        if isinstance(owner, nn.MultiheadAttention):
            return split_projections(owner)[projection.name.rpartition(".")[2]].weight
        return DenseForm.of(owner).weight(owner)

    return weight
