"""Which projections a call is about: globs over module names, or callables."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase

from torch import nn

Selector = str | Callable[[nn.Module, str], bool]
Selectors = Selector | Iterable[Selector] | None


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


def matches(selectors: Iterable[Selector], module: nn.Module, name: str) -> bool:
    """Whether any selector picks the module."""
    return any(
        fnmatchcase(name, selector) if isinstance(selector, str) else selector(module, name)
        for selector in selectors
    )


def names_it(selectors: Iterable[Selector], name: str) -> bool:
    """Whether a selector is the module's very name, without wildcards."""
    return any(selector == name for selector in selectors)
