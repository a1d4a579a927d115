"""Handwritten digits: scikit-learn's 8 x 8 images, moved and turned a little in training."""

from __future__ import annotations

import math
from functools import cache
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.study.models import Mixer
from benchmarks.study.tasks.task import Task, place
from examples.digits_vit import data
from examples.digits_vit.model import VisionTransformer

HEAD_WIDTH = 16
DEPTH = 2
TRAINED_ON = 898  # half of the images: the other half measures accuracy to a point and a half


class Digits(Task):
    """The share of 899 test images named rightly by a ViT or an MLP-Mixer of two blocks."""

    metric: ClassVar[str] = "accuracy"
    higher_is_better: ClassVar[bool] = True
    batch: ClassVar[int] = 64
    exclude = ("embed", "head")

    def __init__(self, model: str) -> None:
        self._kind = model

    def model(self, size: int) -> nn.Module:
        if self._kind == "mixer":
            return Mixer(size, DEPTH)
        return VisionTransformer(size, DEPTH, heads=max(1, size // HEAD_WIDTH))

    def inputs(self, seed: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        images, labels = _digits().batch(self.batch, generator)
        return _moved(images, generator), labels

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs, targets)

    @torch.no_grad()
    def evaluate(self, model: nn.Module, seed: int) -> float:
        digits = _digits()
        predicted = model(digits.test_images.to(place(model))).argmax(dim=1).cpu()
        return float((predicted == digits.test_labels).double().mean())


@cache
def _digits() -> data.Digits:
    whole = data.load()
    images = torch.cat([whole.train_images, whole.test_images])
    labels = torch.cat([whole.train_labels, whole.test_labels])
    return data.Digits(
        images[:TRAINED_ON], labels[:TRAINED_ON], images[TRAINED_ON:], labels[TRAINED_ON:]
    )


def _moved(images: Tensor, generator: torch.Generator) -> Tensor:
    """Every image turned by up to 15 degrees and moved by up to one pixel, each its own way."""
    count = len(images)
    angle = (torch.rand(count, generator=generator) * 2 - 1) * math.radians(15)
    shift = (torch.rand(count, 2, generator=generator) * 2 - 1) * (2 / images.shape[-1])
    turns = torch.stack(
        [angle.cos(), -angle.sin(), shift[:, 0], angle.sin(), angle.cos(), shift[:, 1]], dim=1
    ).view(count, 2, 3)
    planes = images.unsqueeze(1)
    grid = F.affine_grid(turns, list(planes.shape), align_corners=False)
    # The border of a digit is background, which is not zero here.
    return F.grid_sample(planes, grid, padding_mode="border", align_corners=False).squeeze(1)
