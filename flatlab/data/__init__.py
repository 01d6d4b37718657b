"""Data sets: the bundled digits, well-known images, any other that `datasets` reads, and users' functions."""

from flatlab.data.images import ImageData, Split, normalise
from flatlab.data.samples import Reading
from flatlab.data.store import absolute_name, is_local, load_images

__all__ = ["ImageData", "Reading", "Split", "absolute_name", "is_local", "load_images", "normalise"]
