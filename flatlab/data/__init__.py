"""Labelled images as uint8 tensors: the bundled digits, well-known data sets, and any other that `datasets` reads."""

from flatlab.data.images import ImageData, Split, normalise
from flatlab.data.store import absolute_name, is_local, load_images

__all__ = ["ImageData", "Split", "absolute_name", "is_local", "load_images", "normalise"]
