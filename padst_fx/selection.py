"""Which projections a call is about: names and globs of modules, or callables."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn

from padst_fx.projections import Projection

Selector = str | Callable[[nn.Module, str], bool]
Selectors = Selector | Iterable[Selector] | None
SHOWN = 5


@dataclass(frozen=True)
class Target:
    """A projection as selectors see it.

    `names` are its own name and those that a module registered more than once gives it besides;
    `attentions` the names of the `nn.MultiheadAttention` that holds it, which select it too.
    """

    projection: Projection
    module: nn.Module
    names: tuple[str, ...]
    attentions: tuple[str, ...]


@dataclass(frozen=True)
class Choice:
    """A selector and the projections it picks. `literal`: by name rather than by a pattern."""

    argument: str
    selector: Selector
    literal: bool
    names: frozenset[str]


def normalise(argument: str, selectors: Selectors) -> tuple[Selector, ...]:
    """The selectors as a tuple, or a `TypeError` that names the argument."""
    if selectors is None:
        return ()
    listed = (selectors,) if isinstance(selectors, str) or callable(selectors) else selectors
    if not isinstance(listed, Iterable):
        raise TypeError(f"{argument} must be globs or callables, got {selectors!r}")
    result = tuple(listed)
    for selector in result:
        if not (isinstance(selector, str) or callable(selector)):
            raise TypeError(f"{argument} must hold globs or callables, got {selector!r}")
    return result


def targets(model: nn.Module, projections: Iterable[Projection]) -> list[Target]:
    """The projections with every name their modules are registered under."""
    aliases: dict[int, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        aliases.setdefault(id(module), []).append(name)
    return [
        _target(model.get_submodule(projection.owner), projection, aliases)
        for projection in projections
    ]


def _target(
    owner: nn.Module, projection: Projection, aliases: dict[int, list[str]]
) -> Target:
    child = projection.name[len(projection.owner) :].lstrip(".")
    owners = tuple(aliases[id(owner)])
    names = tuple(".".join(part for part in (name, child) if part) for name in owners)
    return Target(projection, owner, names, owners if projection.kind == "attention" else ())


def choose(
    argument: str, selectors: Iterable[Selector], among: Sequence[Target]
) -> tuple[Choice, ...]:
    """What each selector picks: the projection or attention of that name, else those it matches.

    Raises `ValueError` for a string that picks nothing.
    """
    return tuple(_choose(argument, selector, among) for selector in selectors)


def _choose(argument: str, selector: Selector, among: Sequence[Target]) -> Choice:
    if not isinstance(selector, str):
        picked = frozenset(
            target.projection.name
            for target in among
            if any(selector(target.module, name) for name in target.names)
        )
        return Choice(argument, selector, False, picked)
    for literal, fits in ((True, str.__eq__), (False, fnmatchcase)):
        picked = frozenset(
            target.projection.name
            for target in among
            if any(fits(name, selector) for name in (*target.names, *target.attentions))
        )
        if picked:
            return Choice(argument, selector, literal, picked)
    known = ", ".join(target.projection.name for target in among[:SHOWN])
    more = f" and {len(among) - SHOWN} more" if len(among) > SHOWN else ""
    raise ValueError(
        f"{argument} has {selector!r}, which matches no projection; there are: {known}{more}"
    )


def check_keys(argument: str, mapping: Iterable[object]) -> None:
    """Raise `TypeError` for a key of a mapping that is neither a name nor a glob."""
    for key in mapping:
        if not isinstance(key, str):
            raise TypeError(f"{argument} must map names or globs, got the key {key!r}")


def choose_keys(
    argument: str, mapping: Iterable[str], among: Sequence[Target]
) -> tuple[Choice, ...]:
    """What a mapping's keys pick: projections' names first, then attentions', then globs.

    Raises `ValueError` for a key that picks nothing.
    """
    choices = choose(argument, mapping, among)
    return tuple(sorted(choices, key=lambda c: (not c.literal, c.literal and len(c.names))))


def key_for(keys: Iterable[Choice], projection: Projection) -> str | None:
    """The first of a mapping's keys, by `choose_keys`, that picks the projection, if any does."""
    for key in keys:
        if projection.name in key.names:
            assert isinstance(key.selector, str)
            return key.selector
    return None


def picked(choices: Iterable[Choice]) -> frozenset[str]:
    """The names of all projections that any of the choices picks."""
    return frozenset[str]().union(*(choice.names for choice in choices))


def asked_for(
    included: Sequence[Choice], excluded: Sequence[Choice], sparsities: Sequence[Choice]
) -> frozenset[str]:
    """The projections asked for by name, in `include` or as a key of `distribution`.

    Raises `ValueError` where `exclude` takes back all that a name asks for, and where `include`
    leaves out all that a key of `distribution` asks for.
    """
    named = [choice for choice in (*included, *sparsities) if choice.literal]
    barred = picked(excluded)
    for choice in named:
        asks = f"{choice.argument} asks for {choice.selector!r} by name"
        if choice.names <= barred:
            by = next(other.selector for other in excluded if other.names & choice.names)
            raise ValueError(f"{asks}, but exclude has {by!r}, which matches it")
        if included and not choice.names & picked(included):
            raise ValueError(f"{asks}, but include leaves it out")
    allowed = picked(included) if included else picked(named)
    return (picked(named) & allowed) - barred
