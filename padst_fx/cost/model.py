"""The cost model: what the sparse op and dense take on this machine, and how that is known."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from math import exp, log

import torch

from padst_fx.cost.devices import Device, device_of
from padst_fx.cost.records import Record, read_records
from padst_fx.cost.roofline import calculated_seconds
from padst_fx.cost.work import Work
from padst_fx.structures import Pattern

# How a time is known, best first.
SOURCES = ("measured", "interpolated", "scaled", "calculated")
# The largest factor between a dimension, or the density, and the measured one scaled from.
REACH = 4.0

# Out, in and number of weights; and (tokens, seconds), ascending.
Shape = tuple[int, int, int]
Curve = tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Estimate:
    """Seconds of one forward, and how they are known (one of `SOURCES`)."""

    seconds: float
    source: str


@dataclass(frozen=True)
class Comparison:
    """One projection, dense and sparse."""

    dense: Estimate
    sparse: Estimate

    @property
    def gain(self) -> float:
        """Dense time by sparse time: above 1 sparse is faster."""
        return self.dense.seconds / self.sparse.seconds

    @property
    def source(self) -> str:
        """How the less well known of the two is known."""
        return max(self.dense.source, self.sparse.source, key=SOURCES.index)


class CostModel:
    """Times of single forwards on one device.

    A time is the first of these that there is:

    - *measured*: this structure, shape, number of weights, dtype and number of tokens, on this
      device with the same kernels and as many threads;
    - *interpolated*: the same layer at fewer and at more tokens, on a straight line between
      the logarithms of tokens and time;
    - *scaled*: the nearest measured shape of the structure (no dimension and no density more
      than 4 times larger or smaller), or the same one beyond the measured tokens; its time by
      the ratio of the calculated times;
    - *calculated*: `calculated_seconds`.

    More tokens never cost less in what is not measured itself.
    """

    def __init__(self, device: Device, records: Iterable[Record] = ()) -> None:
        self.device = device
        self._curves: dict[tuple[str, str], dict[Shape, Curve]] = {}
        own = (device.name, device.kernels, device.threads)
        for record in records:
            if (record.device, record.kernels, record.threads) == own:
                self._add(record)

    @classmethod
    def of(cls, device: torch.device) -> CostModel:
        """The model for a device of this machine, with the measurements that come along."""
        return _model(device_of(device))

    def _add(self, record: Record) -> None:
        shapes = self._curves.setdefault((record.structure, record.dtype), {})
        shape = (record.out_features, record.in_features, record.nonzeros)
        point = (record.tokens, record.microseconds / 1e6)
        shapes[shape] = tuple(sorted((*shapes.get(shape, ()), point)))

    def compare(self, pattern: Pattern, tokens: int, dtype: torch.dtype) -> Comparison:
        """A sparse projection and the dense one in its place."""
        dense = Work.dense(pattern.out_features, pattern.in_features)
        return Comparison(
            self.estimate(dense, tokens, dtype), self.estimate(Work.of(pattern), tokens, dtype)
        )

    def estimate(self, work: Work, tokens: int, dtype: torch.dtype) -> Estimate:
        """The time of one forward of `tokens` rows."""
        shapes = self._curves.get((work.structure, str(dtype).removeprefix("torch.")), {})
        own = (work.out_features, work.in_features, work.nonzeros)
        exact = dict(shapes.get(own, ()))
        if tokens in exact:
            return Estimate(exact[tokens], "measured")
        nearest = _nearest(own, shapes)
        if nearest is None:
            return Estimate(calculated_seconds(work, tokens, dtype, self.device), "calculated")
        inside = bool(exact) and min(exact) < tokens < max(exact)
        seconds = self._from_nearest(work, nearest, shapes[nearest], tokens, dtype)
        return Estimate(seconds, "interpolated" if inside else "scaled")

    def _from_nearest(
        self, work: Work, nearest: Shape, measured: Curve, tokens: int, dtype: torch.dtype
    ) -> float:
        """The measured curve of another shape (or the same), brought to this one and followed."""

        def calculate(of: Work, at: int) -> float:
            return calculated_seconds(of, at, dtype, self.device)

        other = _reshaped(work, nearest)
        scales = [calculate(work, at) / calculate(other, at) for at, _ in measured]
        scaled = [seconds * by for (_, seconds), by in zip(measured, scales, strict=True)]
        curve = list(zip((at for at, _ in measured), accumulate(scaled, max), strict=True))
        (first, start), (last, end) = curve[0], curve[-1]
        if tokens <= first:
            return start * calculate(work, tokens) / calculate(work, first)
        if tokens >= last:
            return end * calculate(work, tokens) / calculate(work, last)
        return _between(curve, tokens)


@functools.cache
def _model(device: Device) -> CostModel:
    return CostModel(device, read_records())


def _nearest(own: Shape, shapes: Iterable[Shape]) -> Shape | None:
    """The measured shape closest in dimensions and density, None if all are out of reach."""

    def distances(other: Shape) -> tuple[float, float, float]:
        density = (own[2] / (own[0] * own[1])) / (other[2] / (other[0] * other[1]))
        factors = (own[0] / other[0], own[1] / other[1], density)
        return tuple(abs(log(factor)) for factor in factors)  # type: ignore[return-value]

    within = [shape for shape in shapes if max(distances(shape)) <= log(REACH) + 1e-9]
    return min(within, key=lambda shape: (sum(distances(shape)), shape), default=None)


def _reshaped(work: Work, shape: Shape) -> Work:
    """The same structure on a measured shape."""
    out_features, in_features, nonzeros = shape
    return replace(
        work,
        out_features=out_features,
        in_features=in_features,
        nonzeros=nonzeros,
        index_bytes=work.index_bytes * nonzeros // work.nonzeros,
    )


def _between(curve: list[tuple[int, float]], tokens: int) -> float:
    """The time at `tokens`, on a straight line in logarithms between its two neighbours."""
    pairs = pairwise(curve)
    (low, fast), (high, slow) = next(pair for pair in pairs if tokens <= pair[1][0])
    part = log(tokens / low) / log(high / low)
    return exp((1 - part) * log(fast) + part * log(slow))
