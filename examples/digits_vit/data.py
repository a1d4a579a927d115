"""scikit-learn's handwritten digits as tensors. They come with that package: nothing is fetched."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

TEST_SIZE = 360
SPLIT_SEED = 0


@dataclass(frozen=True)
class Digits:
    """Images `[N, 8, 8]` float32 around zero, labels `[N]` int64; the split is always the same."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor

    def batch(self, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """`size` training images drawn with replacement, and their labels."""
        chosen = torch.randint(len(self.train_labels), (size,), generator=generator)
        return self.train_images[chosen], self.train_labels[chosen]


def load() -> Digits:
    """1437 images to train on and 360 to test on."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = torch.tensor(bunch.images, dtype=torch.float32) / 16 - 0.3
    labels = torch.tensor(bunch.target, dtype=torch.int64)
    shuffled = torch.randperm(len(labels), generator=torch.Generator().manual_seed(SPLIT_SEED))
    test, train = shuffled[:TEST_SIZE], shuffled[TEST_SIZE:]
    return Digits(images[train], labels[train], images[test], labels[test])
