"""How the sparsity is spread over layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction

from padst_fx import selection
from padst_fx.projections import Projection
from padst_fx.selection import Choice, Target
from padst_fx.structures.base import Pattern

DISTRIBUTIONS = ("uniform", "erk")
Distribution = str | Mapping[str, float | None] | Callable[[Projection], float | None]


def check_distribution(distribution: Distribution) -> Distribution:
    """The distribution itself, or a `ValueError` that lists the valid ones.

    Raises `TypeError` for a mapping with a key that is no string.
    """
    if isinstance(distribution, Mapping):
        selection.check_keys("distribution", distribution)
        return distribution
    if callable(distribution) or distribution in DISTRIBUTIONS:
        return distribution
    valid = ", ".join(map(repr, DISTRIBUTIONS))
    raise ValueError(
        f"unknown distribution {distribution!r}; valid: {valid}, {{glob: sparsity}}, "
        "or a callable(Projection) -> sparsity"
    )


def choose_keys(distribution: Distribution, among: Sequence[Target]) -> tuple[Choice, ...]:
    """What a mapping's keys pick, as `selection.choose_keys`; empty for another distribution."""
    if not isinstance(distribution, Mapping):
        return ()
    return selection.choose_keys("distribution", distribution, among)


def gives_sparsity(distribution: Distribution, key: Choice) -> bool:
    """Whether a mapping has a sparsity, and not None, under the key."""
    assert isinstance(distribution, Mapping) and isinstance(key.selector, str)
    return distribution[key.selector] is not None


def layer_sparsity(
    distribution: Distribution,
    keys: Sequence[Choice],
    projection: Projection,
    default: float | None,
) -> float | None:
    """One layer's sparsity before any balancing, None to leave it dense.

    `keys` are a mapping's, by `choose_keys`; the first that picks the projection counts.
    """
    if isinstance(distribution, Mapping):
        key = selection.key_for(keys, projection)
        return default if key is None else distribution[key]
    return distribution(projection) if callable(distribution) else default


def erk_weight(pattern: Pattern) -> Fraction:
    """What a layer's Erdos-Renyi-Kernel density is proportional to: `(out + in) / (out * in)`.

    (RigL, arXiv:1911.11134, section 3.)
    """
    out, inputs = pattern.out_features, pattern.in_features
    return Fraction(out + inputs, out * inputs)


def balance(
    patterns: Sequence[Pattern], densities: Sequence[Fraction], budget: int
) -> list[Pattern]:
    """Patterns with whole active counts in proportion to `densities`, `budget` non-zeros in all.

    Every layer's share is its size times a common multiple of its density, no less than one step
    (`Pattern.grain`) and no more than its capacity, such that the shares add up to the budget.
    Every layer is within one step of its share, and the sum within the largest step of the
    budget. Raises `ValueError` for a budget that is out of reach by more than that.
    """
    grains = [pattern.grain for pattern in patterns]
    least = sum(grains)
    most = sum(pattern.grain * pattern.capacity for pattern in patterns)
    if not least - max(grains) <= budget <= most + max(grains):
        size = sum(pattern.out_features * pattern.in_features for pattern in patterns)
        raise ValueError(
            f"{budget} non-zeros in {len(patterns)} layers (sparsity {1 - budget / size:.4g}) "
            f"are out of reach: one unit per layer makes {least} and all of them {most}, so the "
            f"sparsity must be from {1 - most / size:.4g} to {1 - least / size:.4g}"
        )
    shares = _shares(patterns, densities, min(max(budget, least), most))
    counts = [int(share) for share in shares]
    left = budget - sum(count * grain for count, grain in zip(counts, grains, strict=True))
    by_fraction = sorted(range(len(counts)), key=lambda i: shares[i] - counts[i], reverse=True)
    for i in by_fraction:
        if shares[i] > counts[i] and 2 * left >= grains[i]:
            counts[i] += 1
            left -= grains[i]
    return [pattern.with_active(count) for pattern, count in zip(patterns, counts, strict=True)]


def _shares(
    patterns: Sequence[Pattern], densities: Sequence[Fraction], budget: int
) -> list[Fraction]:
    """Fractional active counts, proportional to density within their limits, that use the budget.

    The multiple is exact: the use is linear in it between the points where a layer reaches a
    limit.
    """
    units = [
        density * pattern.out_features * pattern.in_features / pattern.grain
        for pattern, density in zip(patterns, densities, strict=True)
    ]

    def shares(multiple: Fraction) -> list[Fraction]:
        return [
            min(max(multiple * unit, Fraction(1)), Fraction(pattern.capacity))
            for pattern, unit in zip(patterns, units, strict=True)
        ]

    def used(multiple: Fraction) -> Fraction:
        counts = zip(patterns, shares(multiple), strict=True)
        return sum((pattern.grain * share for pattern, share in counts), Fraction(0))

    limits = [(1 / unit, p.capacity / unit) for p, unit in zip(patterns, units, strict=True)]
    points = sorted({Fraction(0), *(point for pair in limits for point in pair)})
    first, last = 0, len(points) - 1
    while last - first > 1:
        middle = (first + last) // 2
        first, last = (middle, last) if used(points[middle]) <= budget else (first, middle)
    below, above = used(points[first]), used(points[last])
    if above == below:
        return shares(points[first])
    slope = (points[last] - points[first]) / (above - below)
    return shares(points[first] + (budget - below) * slope)
