"""What a data set is once it has been read: two splits of uint8 images with labels, and how to normalise them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from analysis.strata import stratified_choice
from flatlab.errors import UsageError


@dataclass(frozen=True)
class Split:
    """Images with their labels; the images may lie in a file that is mapped into memory."""

    images: Tensor  # (n, channels, height, width) uint8
    labels: Tensor  # (n,) int64 in 0..classes-1

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class ImageData:
    """An image-classification data set."""

    name: str
    train: Split
    test: Split
    classes: int
    mean: tuple[float, ...]  # per channel, of images scaled to [0, 1]
    std: tuple[float, ...]  # the same
    augment: bool  # whether training flips and crops the images (flatlab.federated.augment)

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of one image."""
        channels, height, width = self.train.images.shape[1:]
        return channels, height, width

    def subset(self, train: int | None, test: int | None, seed: int) -> "ImageData":
        """Keep `train` training and `test` test images (None: all), each class in its share, drawn from `seed`.

        Raises:
            UsageError: fewer than one asked for, or more than there are.
        """
        return replace(
            self,
            train=self._reduced("training", self.train, train, [seed, 0]),
            test=self._reduced("test", self.test, test, [seed, 1]),
        )

    def _reduced(self, what: str, split: Split, count: int | None, seed: list[int]) -> Split:
        if count is None:
            return split
        if not 1 <= count <= len(split):
            raise UsageError(f"{self.name} has {len(split)} {what} images: ask for 1 to {len(split)}, not {count}.")
        kept = torch.from_numpy(stratified_choice(split.labels.numpy(), count, np.random.default_rng(seed)))
        return Split(split.images[kept], split.labels[kept])


def normalise(
    images: Tensor, mean: Sequence[float], std: Sequence[float], dtype: torch.dtype = torch.float32
) -> Tensor:
    """Map uint8 `images` (n, channels, height, width) to (images / 255 - mean) / std per channel, in `dtype`.

    `mean` and `std` are on the [0, 1] scale. The result lies where `images` do.
    """
    shape = (1, -1, 1, 1)
    offset = (255 * torch.tensor(mean, dtype=torch.float64)).to(images.device, dtype).view(shape)
    scale = (1 / (255 * torch.tensor(std, dtype=torch.float64))).to(images.device, dtype).view(shape)
    return images.to(dtype).sub_(offset).mul_(scale)
