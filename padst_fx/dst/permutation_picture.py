"""A picture of how permutations move."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from padst_fx.dst.statistics import Update
from padst_fx.pictures import figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DISTANCE, RATE, PENALTY = "distance from the identity", "change rate", "penalty per row and column"
# What a panel shows, by layer and step.
Curves = dict[str, list[tuple[int, float]]]


def draw_permutations(updates: Sequence[Update]) -> Figure:
    """Distance from the identity, change rate of learned and penalty of soft permutations, per
    layer over the steps of `updates`.

    Collect the updates with `DST(..., callback=updates.append)`. Raises `ValueError` where no
    update has a learned or a soft permutation, `ModuleNotFoundError` without the extra `pictures`.
    """
    found = {title: curves for title, curves in _panels(updates).items() if curves}
    if not found:
        raise ValueError("nothing to draw: no update has a learned or a soft permutation")
    colors = {name: f"C{n % 10}" for n, name in enumerate(found[DISTANCE])}
    picture = figure(figsize=(5 * len(found), 4), layout="constrained")
    panels = picture.subplots(1, len(found), sharex=True, squeeze=False)[0]
    for axes, (title, curves) in zip(panels, found.items(), strict=True):
        for name, points in curves.items():
            axes.plot(*zip(*points, strict=True), label=name, color=colors[name])
        axes.set(title=title, xlabel="step")
        if title != PENALTY:
            axes.set(ylim=(-0.02, 1.02), ylabel="share of positions")
    picture.legend(*panels[0].get_legend_handles_labels(), loc="outside right upper", fontsize=7)
    return picture


def _panels(updates: Sequence[Update]) -> dict[str, Curves]:
    panels: dict[str, Curves] = {DISTANCE: {}, RATE: {}, PENALTY: {}}

    def add(title: str, name: str, step: int, value: float) -> None:
        panels[title].setdefault(name, []).append((step, value))

    for update in updates:
        for learned in update.permutations:
            add(DISTANCE, learned.name, update.step, learned.distance)
            add(RATE, learned.name, update.step, learned.change_rate)
        if update.soft is not None:
            for name, distance in update.soft.distances.items():
                add(DISTANCE, name, update.step, distance)
                add(PENALTY, name, update.step, update.soft.penalties[name])
    return panels
