"""Scikit-learn's handwritten digits: 1797 real images of 8 x 8 pixels inside a package, for studies at laptop scale."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

TRAINING_IMAGES = 1200
"""The first images are for training, the other 597, written by other people, for testing."""


@dataclass(frozen=True)
class LabelledImages:
    """Images with their classes.

    Attributes:
        images: (N, C, H, W) float, from 0 to 1.
        labels: (N,) int64.
    """

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def flat(self) -> Tensor:
        """The images as rows, (N, C·H·W)."""
        return self.images.flatten(1)


def load_digits(dtype: torch.dtype = torch.float32) -> tuple[LabelledImages, LabelledImages]:
    """The digits, split in the order of the file, so that no writer is on both sides.

    Args:
        dtype: of the images.

    Returns:
        Training images (1200) and test images (597), each (N, 1, 8, 8) with labels 0 to 9.
    """
    from sklearn import datasets

    bunch = datasets.load_digits()
    images = torch.from_numpy(bunch.images).to(dtype).div_(16).unsqueeze(1)
    labels = torch.from_numpy(bunch.target).to(torch.int64)
    return (
        LabelledImages(images[:TRAINING_IMAGES], labels[:TRAINING_IMAGES]),
        LabelledImages(images[TRAINING_IMAGES:], labels[TRAINING_IMAGES:]),
    )
