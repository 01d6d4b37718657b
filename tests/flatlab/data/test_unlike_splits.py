"""Splits that differ in what they hold, or hold it twice."""

from pathlib import Path

import numpy as np
import pytest
import torch

from flatlab.data import Reading, load_images, normalise
from flatlab.errors import UsageError
from tests.flatlab.data.parquet_images import random_images, write_parquet


def write_with_columns(path: Path, **columns: list[int]) -> None:
    """Images with labels in several columns, none of them declared as labels."""
    import datasets
    from PIL import Image

    count = len(next(iter(columns.values())))
    features = {"image": datasets.Image()} | {name: datasets.Value("int64") for name in columns}
    images = [Image.fromarray(x) for x in random_images(count, (4, 4))]
    rows = datasets.Dataset.from_dict({"image": images, **columns}, features=datasets.Features(features))
    rows.to_parquet(str(path))


def test_labels_come_from_one_column_in_both_splits(tmp_path: Path) -> None:
    write_with_columns(tmp_path / "train.parquet", label=[0, 1, 2], **{"class": [2, 1, 0]})
    write_with_columns(tmp_path / "test.parquet", **{"class": [2, 1, 0]})
    with pytest.raises(UsageError, match="'label' in the training split and from 'class' in the test split"):
        load_images(str(tmp_path))
    data = load_images(str(tmp_path), reading=Reading(label="class"))
    assert data.train.labels.tolist() == data.test.labels.tolist() == [2, 1, 0]


def test_one_split_in_two_formats_is_not_read_twice(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame({"x": range(20), "label": ["a", "b"] * 10})
    for split in ("train", "test"):
        table.to_csv(tmp_path / f"{split}.csv", index=False)
        table.to_parquet(tmp_path / f"{split}.parquet", index=False)
    with pytest.raises(UsageError, match=r"holds \.csv and \.parquet files in one split"):
        load_images(str(tmp_path))


def test_a_channel_that_varies_in_the_test_alone_is_not_blown_up(tmp_path: Path) -> None:
    images = random_images(6, (4, 4, 3))
    for image in images:
        image[..., 2] = 255
    images[-1][0, 0, 2] = 254
    write_parquet(tmp_path / "train-0.parquet", images[:4], [0, 1, 0, 1])
    write_parquet(tmp_path / "test-0.parquet", images[4:], [0, 1])
    data = load_images(str(tmp_path))
    train, test = (normalise(split.images, data.mean, data.std) for split in (data.train, data.test))
    assert torch.equal(train[:, 2], torch.zeros_like(train[:, 2]))
    assert float(test[:, 2].abs().max()) == pytest.approx(1 / 255)


def test_clients_of_huge_numbers_are_told_apart(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    owners = np.array([2**63 + 1, 2**63 + 2, 5, 2**63 + 1], dtype=np.uint64)
    for split in ("train", "test"):
        pandas.DataFrame({"x": [1.0, 2.0, 3.0, 4.0], "farm": owners, "label": ["a", "b"] * 2}).to_parquet(
            tmp_path / f"{split}.parquet", index=False
        )
    data = load_images(str(tmp_path), reading=Reading(column="farm"))
    assert data.train.owners is not None
    assert data.train.owners.tolist() == [1, 2, 0, 1]
