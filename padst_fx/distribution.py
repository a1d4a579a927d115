"""How the sparsity is spread over layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase

from padst_fx.projections import Projection
from padst_fx.structures.base import Pattern

DISTRIBUTIONS = ("uniform", "erk")
Distribution = str | Mapping[str, float] | Callable[[Projection], float]


def check_distribution(distribution: Distribution) -> Distribution:
    """The distribution itself, or a `ValueError` that lists the valid ones."""
    if isinstance(distribution, Mapping) or callable(distribution):
        return distribution
    if distribution in DISTRIBUTIONS:
        return distribution
    valid = ", ".join(map(repr, DISTRIBUTIONS))
    raise ValueError(
        f"unknown distribution {distribution!r}; valid: {valid}, {{glob: sparsity}}, "
        "or a callable(Projection) -> sparsity"
    )


def layer_sparsity(
    distribution: Distribution, projection: Projection, default: float | None
) -> float | None:
    """One layer's sparsity before any balancing; a mapping's first matching glob wins."""
    if isinstance(distribution, Mapping):
        for glob, sparsity in distribution.items():
            if fnmatchcase(projection.name, glob):
                return sparsity
        return default
    if callable(distribution):
        return distribution(projection)
    return default


def erk_densities(shapes: Sequence[tuple[int, int]], density: float) -> list[float]:
    """Erdos-Renyi-Kernel densities, proportional to `(out + in) / (out * in)`, at most 1.

    Their average, weighted by size, is `density` (RigL, arXiv:1911.11134, section 3; layers
    that would pass 1 are kept full and the rest shares what is left).
    """
    sizes = [out * inputs for out, inputs in shapes]
    raw = [(out + inputs) / (out * inputs) for out, inputs in shapes]
    full: set[int] = set()
    while True:
        rest = [i for i in range(len(shapes)) if i not in full]
        budget = density * sum(sizes) - sum(sizes[i] for i in full)
        scale = budget / sum(raw[i] * sizes[i] for i in rest) if rest else 0.0
        over = {i for i in rest if scale * raw[i] > 1}
        if not over:
            return [1.0 if i in full else scale * raw[i] for i in range(len(shapes))]
        full |= over


def balance(patterns: Sequence[Pattern], densities: Sequence[float], budget: int) -> list[Pattern]:
    """Patterns with whole active counts near `densities` whose non-zeros sum to `budget`.

    Every layer is within one step (`Pattern.grain`) of its share, and so is the sum.
    """
    wanted = [
        density * pattern.out_features * pattern.in_features / pattern.grain
        for pattern, density in zip(patterns, densities, strict=True)
    ]
    counts = [
        min(max(1, int(share)), pattern.capacity)
        for share, pattern in zip(wanted, patterns, strict=True)
    ]
    left = budget - sum(
        count * pattern.grain for count, pattern in zip(counts, patterns, strict=True)
    )
    by_fraction = sorted(
        range(len(counts)), key=lambda i: wanted[i] - counts[i], reverse=True
    )
    for i in by_fraction:
        grain = patterns[i].grain
        if 2 * left >= grain and counts[i] < patterns[i].capacity:
            counts[i] += 1
            left -= grain
    return [pattern.with_active(count) for pattern, count in zip(patterns, counts, strict=True)]
