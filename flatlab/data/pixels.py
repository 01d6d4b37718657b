"""One encoded image to its pixels: grey or colour, 8 bits deep, or refused by name."""

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError
from PIL.ExifTags import Base

from flatlab.errors import UsageError

Encoded = bytes | Path
"""An image as it is stored: the bytes of its file, or where the file lies."""

Pixels = NDArray[np.uint8]
"""(height, width) if grey, (height, width, 3) if coloured."""

DeepPixels = NDArray[np.uint8] | NDArray[np.uint16]
"""The same, and (height, width) uint16 for a grey image of more than 8 bits."""

GREY = ("1", "L", "LA", "La")
"""Pillow's names of 8-bit grey, without and with transparency; all else that is 8 bits deep becomes RGB."""

SPREAD = {"L;2": 85, "L;4": 17}
"""By what Pillow multiplies the shades of a PNG of 2 or 4 bits, though not the one that is said to be transparent."""


def decode(encoded: Encoded, name: str) -> DeepPixels:
    """Decode one image, turned upright as its EXIF data say; of several frames the first.

    What is transparent is laid over white. A palette, CMYK or another space of colours becomes RGB.

    Raises:
        UsageError: the image `name` is damaged or cut short, holds floats, integers beyond 16 bits, colours of 16 bits,
            of which Pillow would keep only half, or a transparent shade of 16 bits.
    """
    try:
        with Image.open(BytesIO(encoded) if isinstance(encoded, bytes) else encoded) as image:
            raw_mode = _raw_mode(image)
            deep = image.mode.startswith(("I", "F")) or ";16" in raw_mode or _is_deep_tiff(image)
            image.load()
            if raw_mode in SPREAD and "transparency" in image.info:
                image.info["transparency"] *= SPREAD[raw_mode]
            upright = ImageOps.exif_transpose(image) if Base.Orientation in image.getexif() else image
            if deep:
                return _deep(upright, name)
            return np.asarray(_flat(upright), dtype=np.uint8)
    except UsageError:
        raise
    except UnidentifiedImageError as error:
        raise UsageError(f"{name} is no image that can be decoded: mend it, or remove it.") from error
    except OSError as error:
        raise UsageError(f"{name} cannot be read ({error.strerror or error}): mend it, or remove it.") from error
    except Exception as error:  # Pillow's decoders raise SyntaxError, ValueError, struct.error, and their own
        raise UsageError(f"{name} cannot be decoded ({error}): mend it, or remove it.") from error


def _is_deep_tiff(image: Image.Image) -> bool:
    """Whether its colours have more than 8 bits each, which Pillow does not say of planes that lie apart."""
    bits = getattr(image, "tag_v2", {}).get(_BITS_PER_SAMPLE, (8,))
    return bool(max(bits if isinstance(bits, tuple) else (bits,)) > 8)


_BITS_PER_SAMPLE = 258  # TIFF 6.0's number of the field


def eight_bits(images: Sequence[DeepPixels], names: str) -> list[Pixels]:
    """Scale grey images of more than 8 bits to 8, all of them alike; others are returned as they are.

    A camera of 12 bits stores 0..4095 in 16: white is the largest value of as many bits as any of the images uses, so
    that its shades are not lost.

    Raises:
        UsageError: some of the images, which the sentence calls `names`, have 8 bits and some have more.
    """
    depths = {image.dtype for image in images}
    if len(depths) > 1:
        raise UsageError(
            f"{names} has images of 8 bits and images of 16 bits a pixel: convert them to one depth first."
        )
    if depths <= {np.dtype(np.uint8)}:
        return [image.astype(np.uint8, copy=False) for image in images]
    bits = max(8, *(int(image.max(initial=0)).bit_length() for image in images))
    return [np.round(image * (255 / (2**bits - 1))).astype(np.uint8) for image in images]


def scaled(pixels: DeepPixels, size: int) -> DeepPixels:
    """Scale an image to `size` x `size` pixels, bilinear and, where it shrinks, averaging over what it shrinks."""
    if pixels.dtype == np.uint8:
        return np.asarray(Image.fromarray(pixels).resize((size, size), Image.Resampling.BILINEAR))
    deep = Image.fromarray(pixels.astype(np.float32)).resize((size, size), Image.Resampling.BILINEAR)
    return np.round(np.asarray(deep)).astype(np.uint16)


def _raw_mode(image: ImageFile.ImageFile) -> str:
    """Pillow's name of how an image that was opened, and not yet loaded, is stored; empty where it has none."""
    arguments = image.tile[0].args if image.tile else ""
    raw_mode = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    return raw_mode if isinstance(raw_mode, str) else ""


def _deep(image: Image.Image, name: str) -> NDArray[np.uint16]:
    if image.mode == "F":
        raise UsageError(f"{name} holds floats, whose black and white are unknown: convert it to 8 or 16 bits a pixel.")
    pixels, transparent = np.asarray(image), image.info.get("transparency")
    # White, over which what is transparent would be laid, is what the whole set says (`eight_bits`).
    if not image.mode.startswith("I") or (transparent is not None and np.any(pixels == transparent)):
        raise UsageError(f"{name} has colours or transparency of 16 bits a channel: convert it to 8 bits a channel.")
    if pixels.min(initial=0) < 0 or pixels.max(initial=0) > np.iinfo(np.uint16).max:
        raise UsageError(
            f"{name} has values from {pixels.min()} to {pixels.max()}: convert it to 8 or 16 bits a pixel, from 0 on."
        )
    return pixels.astype(np.uint16)


def _flat(image: Image.Image) -> Image.Image:
    """Grey ("L") or colour ("RGB"), over white where it is transparent."""
    mode = "L" if image.mode in GREY else "RGB"
    if not image.has_transparency_data:
        return image if image.mode == mode else image.convert(mode)
    layer = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert(mode)
