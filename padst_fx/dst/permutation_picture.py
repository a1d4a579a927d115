"""A picture of how learned permutations move."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from padst_fx.dst.statistics import Update
from padst_fx.pictures import figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw_permutations(updates: Sequence[Update]) -> Figure:
    """Distance from the identity and change rate per layer over the steps of `updates`.

    Collect the updates with `DST(..., callback=updates.append)`. Raises `ValueError` where no
    update has a learned permutation, `ModuleNotFoundError` without the extra `pictures`.
    """
    names = list(dict.fromkeys(p.name for update in updates for p in update.permutations))
    if not names:
        raise ValueError("nothing to draw: no update has a learned permutation")
    picture = figure(figsize=(10, 4), layout="constrained")
    distance, rate = picture.subplots(1, 2, sharex=True)
    for name in names:
        found = [(u.step, p) for u in updates for p in u.permutations if p.name == name]
        steps = [step for step, _ in found]
        distance.plot(steps, [p.distance for _, p in found], label=name)
        rate.plot(steps, [p.change_rate for _, p in found], label=name)
    for axes, title in ((distance, "distance from the identity"), (rate, "change rate")):
        axes.set(title=title, xlabel="step", ylim=(-0.02, 1.02))
    distance.set_ylabel("share of positions")
    picture.legend(*distance.get_legend_handles_labels(), loc="outside right upper", fontsize=7)
    return picture
