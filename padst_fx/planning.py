"""What `sparsify` would do: every projection of a model, replaced or left dense, and why."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, nn

from padst_fx import distribution as distributions
from padst_fx import selection
from padst_fx.cost import CostModel, check_tokens, counted
from padst_fx.distribution import Distribution
from padst_fx.initialization import check_init, looks_fresh, magnitudes
from padst_fx.layers.attention import PROJECTIONS
from padst_fx.layers.dense import DenseForm
from padst_fx.layers.linear import SparseLinear
from padst_fx.permutation import check_permutation
from padst_fx.permutation_search import Calibration, Retained, input_norms, search
from padst_fx.projections import Projection, find_projections
from padst_fx.structures import NM, Pattern, Structure, StructureError, parse_structure
from padst_fx.structures.base import check_sparsity
from padst_fx.tables import render

COLUMNS = ("name", "role", "shape", "structure", "sparsity", "start")
PERMUTATION_COLUMNS = ("permutation",)
RETAINED_COLUMNS = ("kept without permutation", "kept")
Permutation = str | Mapping[str, str]


@dataclass(frozen=True)
class PlanEntry:
    """One projection: the pattern and start it gets, or the reason why it stays dense.

    `permutation` is the kind before it. `norms` are those of its inputs on the calibration batches;
    `perm` is the permutation that was found for its weights, and `retained` what it keeps of them.
    """

    projection: Projection
    pattern: Pattern | None = None
    init: str | None = None
    reason: str | None = None
    permutation: str = "identity"
    norms: Tensor | None = field(default=None, repr=False, compare=False)
    perm: Tensor | None = field(default=None, repr=False, compare=False)
    retained: Retained | None = None


# Columns of the printed plan, and an entry's cells under them.
Part = tuple[tuple[str, ...], Callable[[PlanEntry], tuple[str, ...]]]


@dataclass(frozen=True)
class Plan:
    """Every projection of a model in order of registration. Printing it shows a table."""

    entries: tuple[PlanEntry, ...]

    @property
    def replaced(self) -> list[PlanEntry]:
        """The projections that become sparse."""
        return [entry for entry in self.entries if entry.pattern is not None]

    @property
    def skipped(self) -> list[PlanEntry]:
        """The projections that stay dense, each with its reason."""
        return [entry for entry in self.entries if entry.pattern is None]

    @property
    def permutations(self) -> tuple[str, ...]:
        """The kinds of permutations before the replaced projections, each once."""
        return tuple(dict.fromkeys(entry.permutation for entry in self.replaced))

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
        parts: list[Part] = [(COLUMNS, _row)]
        if len(self.permutations) > 1:
            parts.append((PERMUTATION_COLUMNS, _permutation_cells))
        if any(entry.retained for entry in self.entries):
            parts.append((RETAINED_COLUMNS, _retained_cells))
        columns = [name for names, _ in parts for name in names]
        rows = [[cell for _, cells in parts for cell in cells(entry)] for entry in self.entries]
        title = (
            f"{len(self.replaced)} of {len(self)} projections become sparse "
            f"({self.sparsity:.2%} of their weights are dropped, "
            f"permutation: {', '.join(self.permutations)})"
        )
        return render(title, columns, rows)


def _row(entry: PlanEntry) -> tuple[str, ...]:
    out, inputs = entry.projection.shape
    named = (entry.projection.name, entry.projection.role, f"{out} x {inputs}")
    if entry.pattern is None:
        return (*named, "dense", "", entry.reason or "")
    return (*named, str(entry.pattern.structure), f"{entry.pattern.sparsity:.4f}", entry.init or "")


def _permutation_cells(entry: PlanEntry) -> tuple[str, ...]:
    return (entry.permutation if entry.pattern else "",)


def _retained_cells(entry: PlanEntry) -> tuple[str, ...]:
    if entry.retained is None:
        return ("", "")
    return (f"{entry.retained.identity:.2%}", f"{entry.retained.permuted:.2%}")


def plan(
    model: nn.Module,
    structure: str | Structure,
    sparsity: float | None = None,
    *,
    permutation: Permutation | None = None,
    distribution: Distribution = "uniform",
    include: selection.Selectors = None,
    exclude: selection.Selectors = None,
    init: str = "auto",
    example_inputs: Any = None,
    skip_slower_at: int | None = None,
    calibration: Calibration = None,
) -> Plan:
    """What `sparsify` with the same arguments would do; changes nothing.

    Heads, tied weights and everything `exclude` matches stay dense, as does what `include`
    does not match if it is given; a head is replaced when it is asked for by name.

    A string in `include`, `exclude` or the keys of `distribution` and `permutation` is the name of
    a projection or of an `nn.MultiheadAttention` (then it means the four projections), or else a
    glob over both; a module registered more than once answers to each of its names. In a mapping a
    name comes before a glob. What no key of `distribution` picks gets `sparsity`, and without it
    stays dense. Names in `include` and names with a sparsity in `distribution` ask for a projection
    by name.

    What no key of `permutation` picks gets the identity. With `permutation=None` projections that
    start from fresh weights get what `structure.usual_permutation` says, others the identity.

    With `skip_slower_at` every projection whose sparse forward of that many tokens, without a
    permutation, is predicted to take longer than the dense one stays dense, one asked for by name
    too; the reason has both times and how they are known (`padst_fx.cost.CostModel`, for the
    weight's device and dtype). "erk" then spreads its budget over the others.

    Behind a learned permutation the plan of a projection that starts from magnitudes has the
    permutation found for them, and the shares of their energy (sum of squares) that the strongest
    units keep with it and without. `calibration` is a tensor, a tuple of arguments or a dict of
    keyword arguments for the model, or an iterable of such; the model is run on it, once, if
    any projection starts from magnitudes.

    Raises `ValueError` for unknown names, globs that match nothing and values out of range, for
    a model without a projection to replace, for one already sparsified, for a projection asked
    for by name that cannot be had or that `include` or `exclude` bars, and for
    `distribution="erk"` with a sparsity that whole units cannot make.
    """
    if skip_slower_at is not None:
        skip_slower_at = check_tokens("skip_slower_at", skip_slower_at)
    wanted = parse_structure(structure)
    distributions.check_distribution(distribution)
    sparsity = _default_sparsity(wanted, sparsity, distribution)
    _check_kinds(permutation)
    check_init(init)
    selectors = {
        "include": selection.normalise("include", include),
        "exclude": selection.normalise("exclude", exclude),
    }
    refuse_sparsified(model)
    among = selection.targets(model, find_projections(model, example_inputs))
    if not among:
        raise ValueError("nothing to sparsify: the model has no linear or attention projection")
    included, excluded = (selection.choose(name, s, among) for name, s in selectors.items())
    choose = _Chooser.of(wanted, sparsity, distribution, included, excluded, among)
    entries = [choose(target.projection) for target in among]

    def spread(over: list[PlanEntry]) -> list[PlanEntry]:
        return _erk(over, wanted, check_sparsity(sparsity)) if distribution == "erk" else over

    entries = spread(entries)
    if skip_slower_at is not None:
        entries = _without_slower(entries, among, skip_slower_at, spread)
    if not any(entry.pattern for entry in entries):
        raise ValueError(_nothing(entries))
    started = [
        replace(entry, init=_start(init, target.module, entry.projection))
        if entry.pattern
        else entry
        for entry, target in zip(entries, among, strict=True)
    ]
    if calibration is not None:
        started = _calibrated(started, model, calibration)
    permuted = _permuted(started, permutation, among)
    return Plan(tuple(_searched(e, t.module) for e, t in zip(permuted, among, strict=True)))


def _permuted(
    entries: list[PlanEntry], permutation: Permutation | None, among: list[selection.Target]
) -> list[PlanEntry]:
    """The entries, those that become sparse with the kind of permutation that they get."""
    keys: tuple[selection.Choice, ...] = ()
    if isinstance(permutation, Mapping):
        keys = selection.choose_keys("permutation", permutation, among)
    return [
        replace(entry, permutation=_kind(entry, entry.pattern, permutation, keys))
        if entry.pattern
        else entry
        for entry in entries
    ]


def _kind(
    entry: PlanEntry,
    pattern: Pattern,
    permutation: Permutation | None,
    keys: tuple[selection.Choice, ...],
) -> str:
    if permutation is None:
        # Before kept weights it would be searched for, which can take minutes: only if asked for.
        return pattern.structure.usual_permutation if entry.init == "random" else "identity"
    if isinstance(permutation, Mapping):
        key = selection.key_for(keys, entry.projection)
        return "identity" if key is None else permutation[key]
    return permutation


def _check_kinds(permutation: Permutation | None) -> None:
    if isinstance(permutation, Mapping):
        selection.check_keys("permutation", permutation)
        for kind in permutation.values():
            check_permutation(kind)
    elif permutation is not None:
        check_permutation(permutation)


def _calibrated(
    entries: list[PlanEntry], model: nn.Module, calibration: Calibration
) -> list[PlanEntry]:
    """The entries that keep magnitudes, with the norms of their inputs."""
    readers = [entry.projection for entry in entries if entry.init == "magnitude"]
    norms = input_norms(model, readers, calibration) if readers else {}
    return [replace(entry, norms=norms.get(entry.projection.name)) for entry in entries]


def _searched(entry: PlanEntry, owner: nn.Module) -> PlanEntry:
    """The entry with the permutation that keeps most, if a learned one keeps any magnitudes."""
    if entry.pattern is None or (entry.permutation, entry.init) != ("learned", "magnitude"):
        return entry
    weight = _weight(owner, entry.projection)
    if weight.is_meta:
        return entry
    perm, retained = search(entry.pattern, magnitudes(weight, entry.norms))
    return replace(entry, perm=perm, retained=retained)


def _default_sparsity(
    structure: Structure, sparsity: float | None, distribution: Distribution
) -> float | None:
    """The sparsity of layers that `distribution` says nothing about, None to leave them dense."""
    if sparsity is not None:
        return check_sparsity(sparsity)
    if isinstance(structure, NM) and structure.n is not None and structure.m is not None:
        return 1 - structure.n / structure.m
    if isinstance(distribution, Mapping) or callable(distribution):
        return None
    return check_sparsity(sparsity)


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
    """Decides for one projection at a time. Sets of names are of projections' first names."""

    structure: Structure
    sparsity: float | None
    distribution: Distribution
    keys: tuple[selection.Choice, ...]
    included: frozenset[str]
    excluded: frozenset[str]
    asked: frozenset[str]

    @classmethod
    def of(
        cls,
        structure: Structure,
        sparsity: float | None,
        distribution: Distribution,
        included: tuple[selection.Choice, ...],
        excluded: tuple[selection.Choice, ...],
        among: list[selection.Target],
    ) -> _Chooser:
        keys = distributions.choose_keys(distribution, among)
        sparse = [key for key in keys if distributions.gives_sparsity(distribution, key)]
        asked = selection.asked_for(included, excluded, sparse)
        every = frozenset(target.projection.name for target in among)
        allowed = selection.picked(included) if included else every
        barred = selection.picked(excluded)
        return cls(structure, sparsity, distribution, keys, allowed, barred, asked)

    def __call__(self, projection: Projection) -> PlanEntry:
        named = projection.name in self.asked
        if reason := self._unavailable(projection):
            if named:
                raise ValueError(f"{projection.name} was asked for by name, but {reason}")
            return PlanEntry(projection, reason=reason)
        if reason := self._unwanted(projection, named):
            return PlanEntry(projection, reason=reason)
        sparsity = distributions.layer_sparsity(
            self.distribution, self.keys, projection, self.sparsity
        )
        if sparsity is None:
            return PlanEntry(projection, reason=self._without_sparsity(projection, named))
        try:
            pattern = self.structure.bind(*projection.shape, sparsity)
        except StructureError as error:
            if named:
                raise StructureError(f"{projection.name}: {error}") from error
            return PlanEntry(projection, reason=str(error))
        except ValueError as error:
            raise ValueError(f"{projection.name}: {error}") from error
        return PlanEntry(projection, pattern)

    def _unavailable(self, projection: Projection) -> str | None:
        if projection.name == "":
            return "the model is itself the projection; use SparseLinear.from_dense"
        if projection.unsupported:
            return projection.unsupported
        if projection.tied_with:
            return f"its weight is tied with {projection.tied_with}"
        return None

    def _unwanted(self, projection: Projection, named: bool) -> str | None:
        if projection.name in self.excluded:
            return "excluded"
        if projection.name not in self.included:
            return "not included"
        if projection.role == "head" and not named:
            return "a head; it stays dense unless asked for by name"
        return None

    def _without_sparsity(self, projection: Projection, named: bool) -> str:
        """Why there is none; a `ValueError` where the projection was asked for all the same."""
        if callable(self.distribution) or any(projection.name in key.names for key in self.keys):
            return "its sparsity is None in the distribution"
        reason = "no key of distribution matches it, and sparsity is not given"
        if named:
            raise ValueError(f"{projection.name} was asked for by name, but {reason}")
        return reason


def _erk(entries: list[PlanEntry], structure: Structure, sparsity: float) -> list[PlanEntry]:
    if isinstance(structure, NM) and structure.n is not None:
        raise ValueError(
            f"distribution='erk' needs a free count, but {structure} fixes n; use NM() or 'uniform'"
        )
    chosen = [i for i, entry in enumerate(entries) if entry.pattern]
    if not chosen:
        return entries
    patterns = [pattern for entry in entries if (pattern := entry.pattern)]
    shapes = [(pattern.out_features, pattern.in_features) for pattern in patterns]
    densities = [distributions.erk_weight(pattern) for pattern in patterns]
    budget = round((1 - sparsity) * sum(out * inputs for out, inputs in shapes))
    result = list(entries)
    for i, pattern in zip(chosen, distributions.balance(patterns, densities, budget), strict=True):
        result[i] = replace(entries[i], pattern=pattern)
    return result


def _without_slower(
    entries: list[PlanEntry],
    among: list[selection.Target],
    tokens: int,
    spread: Callable[[list[PlanEntry]], list[PlanEntry]],
) -> list[PlanEntry]:
    """The plan with slower entries dense; `spread` gives the others their patterns again."""
    while True:
        judged = [_judge(entry, t, tokens) for entry, t in zip(entries, among, strict=True)]
        if judged == entries:
            return entries
        entries = spread(judged)


def _judge(entry: PlanEntry, target: selection.Target, tokens: int) -> PlanEntry:
    """The entry, or one that stays dense if that is predicted to be faster."""
    if entry.pattern is None:
        return entry
    weight = _weight(target.module, entry.projection)
    costs = CostModel.of(weight.device)
    cost = costs.compare(entry.pattern, tokens, weight.dtype)
    sparse, dense = (1e6 * estimate.seconds for estimate in (cost.sparse, cost.dense))
    if sparse <= dense:
        return entry
    reason = (
        f"slower than dense at {counted(tokens)}: {sparse:.1f} us ({cost.sparse.source}) against "
        f"{dense:.1f} us ({cost.dense.source})"
    )
    return PlanEntry(entry.projection, reason=reason)


def _nothing(entries: list[PlanEntry]) -> str:
    reasons = "; ".join(f"{entry.projection.name}: {entry.reason}" for entry in entries[:8])
    more = f"; and {len(entries) - 8} more" if len(entries) > 8 else ""
    return f"nothing to sparsify: every projection stays dense ({reasons}{more})"


def _start(init: str, owner: nn.Module, projection: Projection) -> str:
    """What the layer starts from, `"magnitude"` or `"random"`."""
    if init != "auto":
        return init
    return "random" if looks_fresh(_weight(owner, projection)) else "magnitude"


def _weight(owner: nn.Module, projection: Projection) -> Tensor:
    """A projection's dense `[out, in]` weight, not copied."""
    if not isinstance(owner, nn.MultiheadAttention):
        return DenseForm.of(owner).weight(owner)
    name = projection.name.rpartition(".")[2]
    if name == "out_proj":
        return owner.out_proj.weight
    if owner._qkv_same_embed_dim:
        return owner.in_proj_weight.detach().chunk(3)[PROJECTIONS.index(name)]
    weight = getattr(owner, f"{name}_weight")
    assert isinstance(weight, Tensor)
    return weight
