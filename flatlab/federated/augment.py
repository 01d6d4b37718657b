"""Training augmentation of CIFAR and Tiny-ImageNet: a random flip, then a random crop of the zero-padded image.

Each image is flipped left to right with probability 1/2; with probability 1/2 it is padded by 4 zeros on every side and
cropped back to its size at row and column offsets uniform in 0..8. It is applied after normalising, so that the border
is the mean colour.

The random draws are apart from the work on pixels: they always come from a generator on the CPU, so a client sees the
same augmentation on any device and in any company of other clients.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

PADDING = 4
"""Zeros added on every side before the crop, in pixels."""


@dataclass(frozen=True)
class Draws:
    """What happens to each of n images; a shift of (0, 0) leaves the image where it is."""

    flip: Tensor  # (n,) bool
    shift_y: Tensor  # (n,) int64 in -4..4: row r of the result is row r + shift_y of the image, zeros outside
    shift_x: Tensor  # (n,) int64 in -4..4, the same for columns, after the flip

    def to(self, device: torch.device | str) -> "Draws":
        """Move the three tensors to `device`."""
        return Draws(self.flip.to(device), self.shift_y.to(device), self.shift_x.to(device))


def draw(n: int, generator: torch.Generator) -> Draws:
    """Draw the augmentation of `n` images from `generator`, a generator on the CPU."""
    flip, crop = torch.rand(2, n, generator=generator) < 0.5
    offsets = torch.randint(0, 2 * PADDING + 1, (2, n), generator=generator)
    shift_y, shift_x = (offsets - PADDING) * crop
    return Draws(flip, shift_y, shift_x)


def pad(images: Tensor) -> Tensor:
    """(n, c, h, w) -> (n, h + 8, w + 8, c): zeros on every side, channels last, for any number of `crop`s."""
    return F.pad(images, (PADDING,) * 4).permute(0, 2, 3, 1).contiguous()


def crop(padded: Tensor, index: Tensor, draws: Draws) -> Tensor:
    """Take images `index` (b,) of `padded` (see `pad`), flipped and shifted as `draws` says, in one gather of pixels.

    Everything is on one device. Returns (b, c, h, w), laid out channels last.
    """
    height, width = padded.shape[1] - 2 * PADDING, padded.shape[2] - 2 * PADDING
    rows = torch.arange(height, device=index.device) + (draws.shift_y[:, None] + PADDING)  # (b, h)
    columns = torch.arange(width, device=index.device) + draws.shift_x[:, None]
    columns = torch.where(draws.flip[:, None], width - 1 - columns, columns) + PADDING  # (b, w)
    pixels = (index[:, None] * padded.shape[1] + rows)[:, :, None] * padded.shape[2] + columns[:, None, :]
    taken = padded.flatten(0, 2).index_select(0, pixels.flatten())
    return taken.view(len(index), height, width, -1).permute(0, 3, 1, 2)


def augment(images: Tensor, draws: Draws) -> Tensor:
    """Flip and shift each of `images` (n, c, h, w) as `draws` says; for a single use of every image."""
    return crop(pad(images), torch.arange(len(images), device=images.device), draws)
