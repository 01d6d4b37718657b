"""Decoded images in the cache: once, whole, and anew when files change."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from flatlab.data import Reading, load_images, source, store
from flatlab.data.samples import Source
from flatlab.errors import FlatlabError, UsageError
from tests.flatlab.data.parquet_images import random_images, write_parquet

ROOT = Path(__file__).parents[3]


def test_images_are_decoded_once_and_again_when_files_change(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decodings: list[str] = []

    def counting(where: Source) -> Any:
        decodings.append(where.name)
        return source.read(where)

    monkeypatch.setattr(store, "read", counting)
    with ThreadPoolExecutor(3) as pool:
        loaded = list(pool.map(load_images, [str(folder)] * 3))
    assert all(torch.equal(data.train.images, loaded[0].train.images) for data in loaded)
    assert len(decodings) == 1
    write_parquet(folder / "test-00000-of-00001.parquet", random_images(4), [0, 1, 2, 0])
    assert len(load_images(str(folder)).test) == 4
    assert len(decodings) == 2


LOAD_IN_A_PROCESS = """
import sys
from flatlab.data import load_images
data = load_images(sys.argv[1])
print(len(data.train), int(data.train.images.sum()), "datasets" in sys.modules)
"""


@pytest.mark.long
def test_two_processes_that_start_at_once_decode_once(folder: Path) -> None:
    command = [sys.executable, "-c", LOAD_IN_A_PROCESS, str(folder)]
    processes = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    answers = [process.communicate()[0].split() for process in processes]
    total = sum(int(image.sum()) for image in random_images(18)[:12])
    assert [answer[:2] for answer in answers] == [["12", str(total)]] * 2
    # The one that waited, or came later, mapped the cache without so much as importing `datasets`.
    assert sorted(answer[2] for answer in answers) == ["False", "True"]


def test_an_interrupted_decoding_leaves_nothing_that_is_taken_for_whole(
    folder: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(store, "write_text", interrupted)
        with pytest.raises(KeyboardInterrupt):
            load_images(str(folder))
    assert list(own_cache.glob("*/train-images.npy"))
    assert len(load_images(str(folder)).train) == 12


def test_a_damaged_cache_is_named(folder: Path, own_cache: Path) -> None:
    load_images(str(folder))
    (array,) = own_cache.glob("*/train-images.npy")
    array.write_bytes(array.read_bytes()[:200])
    with pytest.raises(FlatlabError, match=f"{array.parent} are damaged"):
        load_images(str(folder))


def test_a_cache_that_cannot_be_written(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a file").touch()
    monkeypatch.setenv("FLATLAB_CACHE", str(tmp_path / "a file"))
    with pytest.raises(FlatlabError, match="FLATLAB_CACHE"):
        load_images(str(folder))


def test_a_folder_that_cannot_be_read_is_not_taken_for_the_cache(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: object) -> None:
        raise PermissionError(13, "Permission denied", str(folder / "secret"))

    monkeypatch.setattr(source, "parquet_samples", failing)
    with pytest.raises(UsageError, match=f"The data set in {folder} cannot be read: .*Permission denied.*secret"):
        load_images(str(folder))


def test_a_file_of_the_same_size_and_time_is_read_anew(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"

    def load(first: str) -> list[float]:
        file.write_text("x,label\n" + "".join(f"{first if k == 0 else k},{k % 2}\n" for k in range(8)))
        os.utime(file, ns=(10**18, 10**18))
        return load_images(str(file), reading=Reading(holdout=0.25)).train.images.flatten().tolist()

    assert load("5") != load("6")
