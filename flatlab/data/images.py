"""What a data set is once it has been read: two splits of inputs with labels, and how to normalise them.

Most data sets are of uint8 images; a function of the user's may return tensors of any shape, which stay as they are.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from analysis.strata import stratified_choice
from flatlab.errors import UsageError

_LEAST_DEVIATION = 1e-6
"""Of a channel that varies."""


@dataclass(frozen=True)
class Split:
    """Inputs with their labels; images may lie in a file that is mapped into memory."""

    images: Tensor  # (n, channels, height, width) uint8; of a user's function (n, ...) floats or int64 tokens too
    labels: Tensor  # (n,) int64 in 0..classes-1
    owners: Tensor | None = None  # (n,) int64, the client that each sample belongs to as the data know it

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class ImageData:
    """A classification data set."""

    name: str
    train: Split
    test: Split
    classes: int
    mean: tuple[float, ...]  # per channel, of images scaled to [0, 1]; empty where inputs are taken as they are
    std: tuple[float, ...]  # the same
    augment: bool  # whether training flips and crops the images (flatlab.federated.augment)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """(channels, height, width) of one image, or whatever shape one input has."""
        return tuple(self.train.images.shape[1:])

    @property
    def of_images(self) -> bool:
        """Whether the inputs are images."""
        return len(self.mean) > 0

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
        owners = None if split.owners is None else split.owners[kept]
        return Split(split.images[kept], split.labels[kept], owners)


def channel_statistics(images: NDArray[np.uint8]) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of every channel of (n, channels, height, width) uint8, on the [0, 1] scale.

    The deviation of a channel that does not vary, as the blue of images that have none, is 1.
    """
    values = np.arange(256) / 255
    mean, std = [], []
    for channel in range(images.shape[1]):
        counts = np.zeros(256, dtype=np.int64)
        for part in np.array_split(images[:, channel], 64):  # bincount makes int64 of what it is given
            counts += np.bincount(part.ravel(), minlength=256)
        frequency = counts / counts.sum()
        mean.append(float(frequency @ values))
        deviation = float(np.sqrt(frequency @ (values - mean[-1]) ** 2))
        std.append(deviation if deviation > _LEAST_DEVIATION else 1.0)
    return mean, std


def normalise(
    images: Tensor, mean: Sequence[float], std: Sequence[float], dtype: torch.dtype = torch.float32
) -> Tensor:
    """Map uint8 `images` (n, channels, height, width) to (images / 255 - mean) / std per channel, in `dtype`.

    `mean` and `std` are on the [0, 1] scale. Where they are empty, inputs of any shape stay as they are: floats in
    `dtype`, and whole numbers, which are tokens, as int64. The result lies where `images` do.
    """
    if not mean:
        return images.to(dtype) if images.is_floating_point() else images
    shape = (1, -1, 1, 1)
    offset = (255 * torch.tensor(mean, dtype=torch.float64)).to(images.device, dtype).view(shape)
    scale = (1 / (255 * torch.tensor(std, dtype=torch.float64))).to(images.device, dtype).view(shape)
    return images.to(dtype).sub_(offset).mul_(scale)
