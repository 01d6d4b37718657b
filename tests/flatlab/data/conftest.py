"""A cache for each test of data, and a small folder of images."""

from pathlib import Path

import pytest

from tests.flatlab.data.parquet_images import random_images, write_parquet


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("FLATLAB_CACHE", str(folder))
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A local data set of 12 training images in two files and 6 test images, 6 x 5 pixels in colour, 3 classes."""
    folder = tmp_path / "pictures"
    images = random_images(18)
    write_parquet(folder / "train-00000-of-00002.parquet", images[:7], [0, 1, 2, 0, 1, 2, 0])
    write_parquet(folder / "train-00001-of-00002.parquet", images[7:12], [1, 2, 0, 1, 2])
    write_parquet(folder / "test-00000-of-00001.parquet", images[12:], [0, 1, 2, 0, 1, 2])
    return folder
