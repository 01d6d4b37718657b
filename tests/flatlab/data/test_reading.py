"""What a user says of how a data set is read: labels, held-out shares, sizes, columns of clients, augmentation."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from flatlab.data import Reading, load_images
from flatlab.data.pixels import scaled
from flatlab.errors import UsageError
from flatlab.federated.config import RunConfig
from flatlab.federated.world import make_world, resolve
from tests.flatlab.hub_cache import HubCache


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """20 training images by 4 writers with two columns of labels, and no test split."""
    import datasets

    rng = np.random.default_rng(0)
    rows: dict[str, list[Any]] = {
        "picture": [Image.fromarray(rng.integers(0, 256, (6, 6), dtype=np.uint8)) for _ in range(20)],
        "coarse": [k % 2 for k in range(20)],
        "fine": [k % 5 for k in range(20)],
        "writer": ["dcab"[k % 4] for k in range(20)],
    }
    made = datasets.Dataset.from_dict(rows).cast_column("picture", datasets.Image())
    (tmp_path / "table").mkdir()
    made.to_parquet(str(tmp_path / "table" / "train-0.parquet"))
    return tmp_path / "table"


def test_a_class_of_one_row_stays_in_the_training_split(tmp_path: Path) -> None:
    rows = [(k, "common") for k in range(100)] + [(100 + k, f"rare{k}") for k in range(5)]
    (tmp_path / "t.csv").write_text("x,label\n" + "".join(f"{x},{label}\n" for x, label in rows))
    data = load_images(str(tmp_path / "t.csv"), reading=Reading(holdout=0.2))
    assert set(data.train.labels.tolist()) == set(range(6))
    assert len(data.train) + len(data.test) == 105
    (tmp_path / "t.csv").write_text("x,label\n0,a\n1,b\n")
    with pytest.raises(UsageError, match=r"of which holdout = 0.5 leaves one split empty"):
        load_images(str(tmp_path / "t.csv"), reading=Reading(holdout=0.5))


def test_a_folder_without_splits_is_one_of_which_a_share_is_held_out(tmp_path: Path) -> None:
    for label in ("apple", "pear"):
        for k in range(8):
            file = tmp_path / "images" / label / f"{k}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((4, 4), 16 * k + (label == "pear"), dtype=np.uint8)).save(file)
    data = load_images(str(tmp_path / "images"), reading=Reading(holdout=0.25))
    assert (len(data.train), len(data.test), data.classes) == (12, 4, 2)
    (tmp_path / "tables").mkdir()
    for part in ("one", "two"):
        (tmp_path / "tables" / f"{part}.csv").write_text("x,label\n" + "".join(f"{k},{k % 2}\n" for k in range(8)))
    assert len(load_images(str(tmp_path / "tables"), reading=Reading(holdout=0.25)).train) == 12
    with pytest.raises(UsageError, match="or hold out a share"):
        load_images(str(tmp_path / "images"))


def test_a_share_is_held_out_by_class_and_each_time_the_same(table: Path) -> None:
    with pytest.raises(UsageError, match="or hold out a share of the training split"):
        load_images(str(table), reading=Reading(label="fine"))
    data = load_images(str(table), reading=Reading(label="fine", holdout=0.25))
    assert (len(data.train), len(data.test), data.classes) == (15, 5, 5)
    assert sorted(data.test.labels.tolist()) == [0, 1, 2, 3, 4]
    both = {image.numpy().tobytes() for split in (data.train, data.test) for image in split.images}
    assert len(both) == 20
    coarse = load_images(str(table), reading=Reading(label="coarse", holdout=0.5))
    assert coarse.classes == 2
    with pytest.raises(UsageError, match=r"holdout = 0.01 leaves one split empty"):
        load_images(str(table), reading=Reading(label="fine", holdout=0.01))


def test_clients_are_the_values_of_a_column(table: Path) -> None:
    fields = {"dataset": str(table), "label_column": "fine", "holdout": 0.2, "partition": "column"}
    config = RunConfig.model_validate({**fields, "partition_column": "writer", "clients": 4, "model": "mlp"})
    world = make_world(config)
    images = load_images(str(table), reading=Reading(label="fine", holdout=0.2)).train.images
    assert world.data.train.images.equal(images)
    assert sorted(np.concatenate(world.parts)) == list(range(16))
    assert all(len(set(world.data.train.owners[part].tolist())) == 1 for part in world.parts)  # type: ignore[index]
    with pytest.raises(UsageError, match=r"no column 'author' \(partition_column\), but only picture"):
        load_images(str(table), reading=Reading(label="fine", holdout=0.2, column="author"))
    with pytest.raises(UsageError, match=r"no column 'digit' \(label_column\)"):
        load_images(str(table), reading=Reading(label="digit", holdout=0.2))
    with pytest.raises(UsageError, match="leave hub_config out"):
        load_images(str(table), reading=Reading(configuration="v2"))


@pytest.fixture
def two_configurations(hub: HubCache) -> str:
    """A data set of the hub: "dark" of black images, "light" of grey ones."""
    import datasets

    for name, level in {"dark": 0, "light": 100}.items():
        splits = {}
        for k, split in enumerate(("train", "test")):
            images = [Image.fromarray(np.full((4, 4), level + 10 * k + i, dtype=np.uint8)) for i in range(4)]
            rows = datasets.Dataset.from_dict({"image": images, "label": [0, 1, 0, 1]})
            splits[split] = rows.cast_column("image", datasets.Image())
        hub.put("greys", name, splits)
    return "someone/greys"


def test_a_configuration_of_the_hub_is_the_one_that_is_named(two_configurations: str) -> None:
    def brightest(configuration: str) -> float:
        return float(load_images(two_configurations, reading=Reading(configuration=configuration)).train.images.max())

    assert [brightest(name) for name in ("dark", "light", "dark")] == [3, 103, 3]
    with pytest.raises(UsageError, match=r"(dark, light|light, dark)\. Name one with --hub-config"):
        load_images(two_configurations)
    with pytest.raises(UsageError, match="for config 'grey'"):
        load_images(two_configurations, reading=Reading(configuration="grey"))


@pytest.fixture
def sizes(tmp_path: Path) -> Path:
    """Class folders of images of two sizes, without a test split."""
    for label in ("a", "b"):
        for k in range(4):
            file = tmp_path / "sizes" / "train" / label / f"{k}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((6 + 6 * (k % 2), 6, 3), 40 * k, dtype=np.uint8)).save(file)
    return tmp_path / "sizes"


def test_images_of_any_sizes_are_scaled_to_one(sizes: Path) -> None:
    with pytest.raises(UsageError, match=r"or name one \(image_size\)"):
        load_images(str(sizes), reading=Reading(holdout=0.25))
    data = load_images(str(sizes), reading=Reading(holdout=0.25, size=4))
    assert data.input_shape == (3, 4, 4)
    assert (len(data.train), len(data.test)) == (6, 2)
    with pytest.raises(UsageError, match="no use for partition_column"):
        load_images(str(sizes), reading=Reading(holdout=0.25, size=4, column="writer"))


def test_shrinking_averages_and_keeps_the_depth() -> None:
    board = 255 * (np.indices((8, 8)).sum(axis=0) % 2).astype(np.uint8)
    assert np.abs(scaled(board, 2).astype(int) - 127).max() <= 8
    deep = np.full((8, 8), 4095, dtype=np.uint16)
    assert scaled(deep, 3).dtype == np.uint16
    assert (scaled(deep, 3) == 4095).all()
    assert scaled(np.zeros((5, 9, 3), dtype=np.uint8), 7).shape == (7, 7, 3)


def test_bundled_digits_have_nothing_to_say(tmp_path: Path) -> None:
    for reading in (Reading(label="a"), Reading(holdout=0.5), Reading(size=4), Reading(column="a")):
        with pytest.raises(UsageError, match="The data set digits has no use for"):
            load_images("digits", reading=reading)


def test_augmentation_is_as_the_configuration_says() -> None:
    for name, augmented in (("auto", False), ("none", False), ("flip-crop", True)):
        assert resolve(RunConfig.model_validate({"augmentation": name}))[1].augment == augmented
