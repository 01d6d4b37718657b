"""What users' folders and files hold beside what they say: links, left-over parts, other columns, deeper pixels."""

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]
import pytest
from PIL import Image
from pyarrow import parquet

from flatlab.data import Reading, absolute_name, load_images
from flatlab.data.image_folder import visible_files
from flatlab.data.pixels import decode
from flatlab.data.samples import Source
from flatlab.data.table import Tables, read_rows
from flatlab.errors import UsageError
from tests.flatlab.data.csv_rows import write
from tests.flatlab.data.parquet_images import SHADES, random_images, write_parquet


def image_set(folder: Path, **more: Any) -> Path:
    for split, count in (("train", 6), ("test", 3)):
        write_parquet(
            folder / f"{split}-0.parquet", random_images(count, (4, 4, 3)), [k % 3 for k in range(count)], **more
        )
    return folder


def test_a_link_is_the_set_that_it_is_called_or_leads_to(tmp_path: Path) -> None:
    image_set(tmp_path / "store" / "cifar10-2024")
    (tmp_path / "cifar10").symlink_to(tmp_path / "store" / "cifar10-2024")
    for name, root in (("cifar10", tmp_path), (str(tmp_path / "cifar10"), None)):
        data = load_images(name, root=root)
        assert (data.name, data.augment) == ("cifar10", True)
    image_set(tmp_path / "store" / "cifar100")
    (tmp_path / "mine").symlink_to(tmp_path / "store" / "cifar100")
    assert load_images(str(tmp_path / "mine")).name == "cifar100"
    (tmp_path / "other").symlink_to(tmp_path / "store" / "cifar10-2024")
    assert load_images(str(tmp_path / "other")).name == "other"
    assert absolute_name(str(tmp_path / "cifar10")) == str(tmp_path / "cifar10")  # as a run keeps it


def test_what_does_not_vary_in_training_is_zero_in_the_test_too(tmp_path: Path) -> None:
    for split, year in (("train", 2023), ("test", 2024)):
        write(tmp_path / "t" / f"{split}.csv", [[year, k, k % 2] for k in range(8)], ("year", "x", "label"))
    data = load_images(str(tmp_path / "t"))
    assert data.test.images[:, 0].tolist() == [0.0] * 8
    assert data.test.images[:, 1].tolist() == data.train.images[:, 1].tolist()


@pytest.mark.parametrize("name", ["Unnamed: 0", "__index_level_0__"])
def test_the_numbers_of_rows_are_no_input_from_wherever_they_come(name: str, tmp_path: Path) -> None:
    table = pa.table({name: range(8), "x": [float(k % 3) for k in range(8)], "label": [k % 2 for k in range(8)]})
    (tmp_path / "t").mkdir()
    for split in ("train", "test"):
        parquet.write_table(table, tmp_path / "t" / f"{split}.parquet")
    with pytest.raises(UsageError, match="has no name for its column 1"):
        load_images(str(tmp_path / "t"))
    with pytest.raises(UsageError, match="has no name for its column 1"):  # as the hub gives them
        read_rows(Source("t", None, (), "someone/t", None, Reading()), Tables(table, table))


def test_one_class_alone_is_refused_though_others_are_declared(tmp_path: Path) -> None:
    for split, labels in (("train", [0] * 4), ("test", [0, 1])):
        write_parquet(tmp_path / "t" / f"{split}-0.parquet", random_images(len(labels)), labels)
    with pytest.raises(UsageError, match="the one class class 0, and nothing to tell it from, in its training split"):
        load_images(str(tmp_path / "t"))


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["train-00000-of-00003"], "Of the 3 parts of .* number 1 is missing"),
        (["train-00000-of-00001", "train-00000-of-00001-abcdef"], "parts of one split made at two times"),
        (["train-00000-of-00002", "train-00001-of-00003"], "parts of one split made at two times"),
        (["train-00000-of-00002", "train-00001-of-00002"], ""),
        (["train-1-of-2", "train-2-of-2"], ""),
        (["train-1-of-3", "train-3-of-3"], "Of the 3 parts of .* number 2 is missing"),
    ],
)
@pytest.mark.parametrize("inside", ["", "train"])
def test_parts_that_count_themselves_are_all_here_once(
    names: list[str], said: str, inside: str, tmp_path: Path
) -> None:
    for name in names:
        write_parquet(tmp_path / "t" / inside / f"{name}.parquet", random_images(3), [0, 1, 2])
    write_parquet(
        tmp_path / "t" / ("test" if inside else "") / "test-00000-of-00001.parquet", random_images(3), [0, 1, 2]
    )
    if said:
        with pytest.raises(UsageError, match=said):
            load_images(str(tmp_path / "t"))
    else:
        assert len(load_images(str(tmp_path / "t")).train) == 6


def test_a_folder_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    real = os.scandir

    def scandir(path: Any) -> Any:  # a superuser may read whatever there is
        if str(path).endswith("batch2"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    (tmp_path / "train" / "a" / "batch2").mkdir(parents=True)
    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(UsageError, match=r"batch2 cannot be read \(Permission denied\)"):
        visible_files(tmp_path)


def test_two_columns_that_could_be_the_labels_of_images_are_named(tmp_path: Path) -> None:
    import datasets

    for split in ("train", "test"):
        rows = {"image": [Image.fromarray(SHADES)] * 4, "label": [0, 1, 2, 0], "sex": [0, 1, 0, 1]}
        table = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
        table = table.cast_column("sex", datasets.ClassLabel(names=["f", "m"]))
        (tmp_path / "t").mkdir(exist_ok=True)
        table.to_parquet(str(tmp_path / "t" / f"{split}.parquet"))
    with pytest.raises(UsageError, match=r"has sex and label that could be its labels: name that column"):
        load_images(str(tmp_path / "t"))
    assert load_images(str(tmp_path / "t"), reading=Reading(label="label")).classes == 3
    assert load_images(str(tmp_path / "t"), reading=Reading(label="sex")).classes == 2
    assert load_images(str(tmp_path / "t"), reading=Reading(column="sex")).classes == 3  # which is the clients'
    owners = load_images(str(image_set(tmp_path / "by-class")), reading=Reading(column="label")).train.owners
    assert owners is not None  # of a set without other labels each class may be a client
    assert owners.tolist() == [0, 1, 2] * 2


def test_the_test_split_of_images_needs_no_column_of_clients(tmp_path: Path) -> None:
    import datasets

    for split in ("train", "test"):
        rows: dict[str, Any] = {"image": [Image.fromarray(SHADES)] * 4, "label": [0, 1, 2, 0]}
        rows |= {"writer": ["a", "b", "a", "b"]} if split == "train" else {}
        table = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
        (tmp_path / "t").mkdir(exist_ok=True)
        table.to_parquet(str(tmp_path / "t" / f"{split}.parquet"))
    owners = load_images(str(tmp_path / "t"), reading=Reading(column="writer")).train.owners
    assert owners is not None
    assert owners.tolist() == [0, 1, 0, 1]
    with pytest.raises(UsageError, match=r"no column 'reader' \(partition_column\)"):
        load_images(str(tmp_path / "t"), reading=Reading(column="reader"))


def planar_tiff(file: Path) -> Path:
    """A TIFF of 2 x 2 pixels of three colours of 16 bits, each colour in a plane of its own."""
    planes = np.arange(12, dtype="<u2").tobytes()
    fields = [
        (256, 3, 1, 2), (257, 3, 1, 2), (258, 3, 3, 0), (259, 3, 1, 1), (262, 3, 1, 2), (273, 4, 3, 0), (277, 3, 1, 3),
        (278, 3, 1, 2), (279, 4, 3, 0), (284, 3, 1, 2),
    ]  # fmt: skip
    start = 8 + 2 + 12 * len(fields) + 4
    bits, offsets, counts = start, start + 6, start + 18
    places = {258: bits, 273: offsets, 279: counts}
    directory = b"".join(struct.pack("<HHII", tag, kind, n, places.get(tag, v)) for tag, kind, n, v in fields)
    extra = struct.pack("<3H", 16, 16, 16) + struct.pack("<3I", *(start + 30 + 8 * k for k in range(3)))
    extra += struct.pack("<3I", 8, 8, 8)
    file.write_bytes(b"II*\0" + struct.pack("<IH", 8, len(fields)) + directory + b"\0" * 4 + extra + planes)
    return file


def test_planes_of_sixteen_bits_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="16 bits"):
        decode(planar_tiff(tmp_path / "deep.tif"), "deep.tif")


def test_classes_whose_names_begin_with_underscores_are_classes(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for name in ("__background__", "cat", "__MACOSX"):
            (tmp_path / "t" / split / name).mkdir(parents=True)
            Image.fromarray(SHADES).save(tmp_path / "t" / split / name / "__005.png")
    data = load_images(str(tmp_path / "t"))
    assert (data.classes, len(data.train)) == (2, 2)


def test_folders_named_after_splits_are_no_classes(tmp_path: Path) -> None:
    for name in ("train_images", "test_images"):
        (tmp_path / "t" / name).mkdir(parents=True)
        for k in range(4):
            Image.fromarray(SHADES).save(tmp_path / "t" / name / f"{k}.png")
    with pytest.raises(UsageError, match="test_images and train_images, which are named after splits, not classes"):
        load_images(str(tmp_path / "t"), reading=Reading(holdout=0.25))


def test_whole_numbers_that_no_integer_holds_are_refused(tmp_path: Path) -> None:
    content = [[10**19 + k, k, k % 2] for k in range(8)]
    file = write(tmp_path / "t.csv", content, ("id", "x", "label"))
    with pytest.raises(UsageError, match="whole numbers beyond 2"):
        load_images(str(file), reading=Reading(holdout=0.25))
    floats = [[f"{k}e19" if k % 2 else k, k, k % 2] for k in range(8)]
    assert load_images(str(write(file, floats, ("id", "x", "label"))), reading=Reading(holdout=0.25)).classes == 2


def test_an_empty_file_in_the_cache_is_one_sentence(tmp_path: Path) -> None:
    folder = image_set(tmp_path / "t")
    load_images(str(folder))
    (labels,) = (tmp_path / "cache").rglob("train-labels.npy")
    labels.write_bytes(b"")
    with pytest.raises(Exception, match=r"are damaged .*: delete that folder"):
        load_images(str(folder))
