"""Convolutions in float64 on a CPU as matrix products of patches.

For float32 oneDNN has convolutions; for float64 torch multiplies image by image, and where images have shrunk to a few
pixels reads all weights for each of them: a forward pass of a ResNet's last layer takes 20 times as long as in float32.
With the patches of all images side by side it is one matrix product, and takes a quarter of that.
"""

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor
from torch.nn import functional as F

Sizes = tuple[int, ...]
Geometry = tuple[Sizes, Sizes, Sizes, int]
"""Stride, padding and dilation per dimension, and the number of groups."""

FEW = 16
"""Pixels of the result up to which patches are faster; of more, there are too many to copy out."""

MOST = 1 << 28
"""Bytes of patches at once at most."""


def pay(x: Tensor, w: Tensor, pixels: Sequence[int], groups: int) -> bool:
    """Whether the convolution of `x` with `w`, with a result of that height and width, is faster by patches.

    One that torch refuses is left to torch, which says why.
    """
    here = x.dtype == w.dtype == torch.float64 and x.device.type == "cpu" and x.dim() == 4
    fits = here and groups == 1 and x.shape[1] == w.shape[1] and len(x) > 0 and min(pixels) > 0
    return fits and prod(pixels) <= FEW and len(x) * prod(pixels) * prod(w.shape[1:]) * x.itemsize <= MOST


def pixels(x: Tensor, w: Tensor, geometry: Geometry) -> Sizes:
    """Height and width (or whatever dimensions there are) of the result."""
    across = zip(x.shape[2:], w.shape[2:], *geometry[:3], strict=True)
    return tuple((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in across)


def apply(x: Tensor, w: Tensor, b: Tensor | None, geometry: Geometry) -> Tensor:
    """C(x, w) + b: images (n, c, h, w) and kernels (o, c, kh, kw) -> (n, o, h', w')."""
    y = w.flatten(1) @ _patches(x, w, geometry)
    y = y if b is None else y + b[:, None]
    return y.view(len(w), len(x), *pixels(x, w, geometry)).transpose(0, 1).contiguous()


def by_input(g: Tensor, x: Tensor, w: Tensor, geometry: Geometry) -> Tensor:
    """X(g, w) = d<g, C(x, w)>/dx, of the shape of `x`."""
    columns = (w.flatten(1).T @ _rows(g)).view(-1, len(g), prod(g.shape[2:])).transpose(0, 1)
    stride, padding, dilation, _ = geometry
    return F.fold(columns, x.shape[2:], w.shape[2:], dilation, padding, stride)


def by_weight(g: Tensor, x: Tensor, w: Tensor, geometry: Geometry) -> Tensor:
    """W(g, x) = d<g, C(x, w)>/dw, of the shape of `w`."""
    return (_rows(g) @ _patches(x, w, geometry).T).view_as(w)


def _patches(x: Tensor, w: Tensor, geometry: Geometry) -> Tensor:
    """What every place of the result sees, a column for each: (c kh kw, n h' w')."""
    stride, padding, dilation, _ = geometry
    return F.unfold(x, w.shape[2:], dilation, padding, stride).transpose(0, 1).flatten(1)


def _rows(g: Tensor) -> Tensor:
    """(n, o, h', w') -> (o, n h' w')."""
    return g.transpose(0, 1).flatten(1)
