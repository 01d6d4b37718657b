"""Images of every mode and depth as arrays: grey stays grey, transparency lies over white, 16 bits are scaled."""

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from flatlab.data.pixels import decode, eight_bits
from flatlab.errors import UsageError
from tests.flatlab.data.parquet_images import SHADES


def decoded(image: Image.Image, file: Path, **options: Any) -> np.ndarray:
    image.save(file, **options)
    return eight_bits([decode(file, str(file))], "the set")[0]


@pytest.mark.parametrize(
    ("mode", "suffix", "shape", "loss"),
    [
        ("L", "png", (4, 4), 0),
        ("LA", "png", (4, 4), 0),
        ("P", "png", (4, 4, 3), 0),
        ("RGB", "png", (4, 4, 3), 0),
        ("RGBA", "png", (4, 4, 3), 0),
        ("CMYK", "tiff", (4, 4, 3), 1),
        ("YCbCr", "tiff", (4, 4, 3), 2),
    ],
)
def test_grey_stays_grey_and_other_modes_become_colour(
    tmp_path: Path, mode: str, suffix: str, shape: tuple[int, ...], loss: int
) -> None:
    pixels = decoded(Image.fromarray(SHADES).convert(mode), tmp_path / f"1.{suffix}")
    assert pixels.shape == shape
    assert pixels.dtype == np.uint8
    expected = SHADES if pixels.ndim == 2 else np.repeat(SHADES[..., None], 3, axis=2)
    assert np.abs(pixels.astype(int) - expected).max() <= loss


def test_black_and_white(tmp_path: Path) -> None:
    assert decoded(Image.fromarray(SHADES > 100), tmp_path / "1.png").tolist() == (255 * (SHADES > 100)).tolist()


@pytest.mark.parametrize("bits", range(8, 17))
@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_deep_grey_images_keep_their_shades(tmp_path: Path, bits: int, suffix: str) -> None:
    stored = np.linspace(0, 2**bits - 1, 256).round().astype(np.uint16).reshape(16, 16)
    pixels = decoded(Image.fromarray(stored), tmp_path / f"1.{suffix}")
    assert pixels.ravel().tolist() == list(range(256))


def test_deep_images_are_scaled_alike() -> None:
    dark, bright = np.full((2, 2), 1000, np.uint16), np.full((2, 2), 4000, np.uint16)
    scaled = eight_bits([dark, bright], "the set")
    assert [int(image[0, 0]) for image in scaled] == [round(1000 * 255 / 4095), round(4000 * 255 / 4095)]


def test_whole_numbers_of_32_bits_within_16_are_16(tmp_path: Path) -> None:
    assert decoded(Image.fromarray(SHADES.astype(np.int32) * 257), tmp_path / "1.tiff").tolist() == SHADES.tolist()


@pytest.mark.parametrize("grey", [True, False])
def test_what_is_transparent_is_laid_over_white(tmp_path: Path, grey: bool) -> None:
    image = Image.new("LA" if grey else "RGBA", (2, 1), (10, 0) if grey else (10, 20, 30, 0))
    image.putpixel((1, 0), (10, 255) if grey else (10, 20, 30, 255))
    pixels = decoded(image, tmp_path / "1.png")
    assert pixels.tolist() == ([[255, 10]] if grey else [[[255, 255, 255], [10, 20, 30]]])


def test_a_palette_with_a_transparent_colour(tmp_path: Path) -> None:
    image = Image.new("P", (2, 1), 0)
    image.putpalette([1, 2, 3, 4, 5, 6])
    image.putpixel((1, 0), 1)
    assert decoded(image, tmp_path / "1.png", transparency=0).tolist() == [[[255, 255, 255], [4, 5, 6]]]


def test_an_image_is_turned_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    assert decoded(Image.fromarray(SHADES[:2]), tmp_path / "1.png", exif=exif).tolist() == SHADES[1::-1].T.tolist()


def _png(width: int, bits: int, kind: int, line: bytes, transparent: int | None = None) -> bytes:
    """A PNG of one line, as Pillow writes none; `kind` is 0 for grey, 2 for colour."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    chunks = [chunk(b"IHDR", struct.pack(">IIBBBBB", width, 1, bits, kind, 0, 0, 0))]
    chunks += [] if transparent is None else [chunk(b"tRNS", struct.pack(">H", transparent))]
    chunks += [chunk(b"IDAT", zlib.compress(b"\0" + line)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@pytest.mark.parametrize("transparent", [None, 0, 1, 2, 3])
@pytest.mark.parametrize(("bits", "line"), [(2, b"\x1b"), (4, b"\x01\x23"), (8, b"\x00\x01\x02\x03")])
def test_one_shade_of_few_bits_is_transparent(bits: int, line: bytes, transparent: int | None) -> None:
    step = 255 // (2**bits - 1)
    expected = [[255 if k == transparent else k * step for k in range(4)]]
    assert decode(_png(4, bits, 0, line, transparent), "the picture").tolist() == expected


def test_a_transparent_shade_of_16_bits_is_refused_where_a_pixel_has_it() -> None:
    line = struct.pack(">HH", 7, 4095)
    assert decode(_png(2, 16, 0, line, transparent=8), "the picture").tolist() == [[7, 4095]]
    with pytest.raises(UsageError, match="the picture has colours or transparency of 16 bits a channel"):
        decode(_png(2, 16, 0, line, transparent=7), "the picture")


def test_colours_of_16_bits_are_refused() -> None:
    with pytest.raises(UsageError, match="the picture has colours or transparency of 16 bits a channel"):
        decode(_png(1, 16, 2, struct.pack(">HHH", 1, 2, 3)), "the picture")
