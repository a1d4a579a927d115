"""A picture of one layer's mask before and after training, per structure."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("agg")

from matplotlib import pyplot
from matplotlib.colors import ListedColormap
from torch import Tensor

from examples.digits_vit.comparison import Result

EMPTY, KEPT, GROWN = 0, 1, 2
COLOURS = ListedColormap(["white", "#9aa5b1", "#d1495b"])


def draw(results: Sequence[Result], layer: str, path: Path) -> None:
    """Masks of `layer` from the first seed, one column per structure, as a PNG."""
    sparse = [result for result in results if layer in result.first.masks_after]
    figure, axes = pyplot.subplots(
        2, len(sparse), figsize=(3 * len(sparse), 6.8), layout="constrained", squeeze=False
    )
    for result, (above, below) in zip(sparse, axes.T, strict=True):
        before, after = result.first.masks_before[layer], result.first.masks_after[layer]
        _panel(above, before.int(), f"{result.name}\nbefore training")
        _panel(below, kinds(before, after), f"after: {share_grown(before, after):.0%} grown (red)")
    figure.suptitle(f"Masks of blocks.{layer} ({before.shape[0]} x {before.shape[1]})")
    figure.savefig(path, dpi=90)
    pyplot.close(figure)


def kinds(before: Tensor, after: Tensor) -> Tensor:
    """EMPTY, KEPT or GROWN for every place of a mask."""
    return after.int() * KEPT + (after & ~before).int() * (GROWN - KEPT)


def share_grown(before: Tensor, after: Tensor) -> float:
    """The share of the weights after training that were not in the mask before it."""
    return ((after & ~before).sum() / after.sum()).item()


def _panel(axes: pyplot.Axes, image: Tensor, title: str) -> None:
    axes.imshow(image.numpy(), cmap=COLOURS, vmin=EMPTY, vmax=GROWN, interpolation="nearest")
    axes.set_title(title, fontsize=9)
    axes.set_xticks([])
    axes.set_yticks([])
