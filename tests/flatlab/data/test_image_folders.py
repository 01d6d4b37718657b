"""Folders of images: which split and class an image belongs to, what becomes of its pixels, and what is refused."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from flatlab.data import absolute_name, load_images
from flatlab.data.image_folder import class_folders, split_files
from flatlab.errors import UsageError
from tests.command_line import flatlab
from tests.flatlab.data.parquet_images import SHADES, write_parquet


def write(file: Path, pixels: np.ndarray = SHADES) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(file)
    return file


@pytest.fixture
def fruit(tmp_path: Path) -> Path:
    """Two classes, one image each, in either split."""
    for split in ("train", "test"):
        for name in ("apple", "pear"):
            write(tmp_path / "fruit" / split / name / "1.png")
    return tmp_path / "fruit"


NAMES = ("apple", "train", "test", "test tube", "validation", "val", "dev", "eval", "training-1", "10", "2", "Z")


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    splits=st.sampled_from([("train", "test"), ("train", "val"), ("training", "validation"), ("Train", "TEST")]),
    classes=st.sets(st.sampled_from(NAMES), min_size=1, max_size=5),
    inner=st.sampled_from(["", "train/", "test/", "a/val/"]),
)
def test_only_the_first_level_names_a_split(
    tmp_path_factory: pytest.TempPathFactory, splits: tuple[str, str], classes: set[str], inner: str
) -> None:
    folder = tmp_path_factory.mktemp("set")
    for name in classes:
        for split, count in zip(splits, (3, 2), strict=True):
            for i in range(count):
                file = folder / split / name / f"{inner}test {i}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                file.touch()
    files = split_files(folder)
    train, test = class_folders(files["train"], files["test" if "test" in splits[1].lower() else "validation"])
    for samples, split, count in ((train, splits[0], 3), (test, splits[1], 2)):
        assert samples.classes == tuple(sorted(classes))
        found = sorted((Path(s.name).relative_to(folder).parts[:2], s.label) for s in samples.stream)
        assert sorted(found) == [
            ((split, name), sorted(classes).index(name)) for name in sorted(classes) for _ in range(count)
        ]


def test_the_test_split_wins_over_the_validation_split(fruit: Path) -> None:
    for name in ("apple", "pear"):
        write(fruit / "val" / name / "1.png", SHADES[::-1])
    data = load_images(str(fruit))
    assert (len(data.train), len(data.test)) == (2, 2)
    assert data.test.images[0, 0].tolist() == SHADES.tolist()


def test_files_in_a_split_of_their_own_and_below_a_folder_called_like_one(tmp_path: Path) -> None:
    place = tmp_path / "test" / "data [1]"
    write_parquet(place / "train-0.parquet", [SHADES] * 3, [0, 1, 2])
    write_parquet(place / "data" / "ignored.parquet", [SHADES], [0])
    write_parquet(place / "valid_0.parquet", [SHADES], [2])
    data = load_images(str(place))
    assert (data.train.labels.tolist(), data.test.labels.tolist()) == ([0, 1, 2], [2])


def test_hidden_and_other_files_are_left_out(fruit: Path) -> None:
    for name in (".DS_Store", "._1.png", "notes.txt", "Thumbs.db"):
        (fruit / "train" / "apple" / name).write_bytes(b"no image")
    write(fruit / "train" / ".ipynb_checkpoints" / "1.png")
    write(fruit / "__MACOSX" / "train" / "apple" / "1.png")
    data = load_images(str(fruit))
    assert (len(data.train), data.classes) == (2, 2)


def test_links_to_folders_are_followed_once(fruit: Path, tmp_path: Path) -> None:
    (fruit / "train" / "pear").rename(tmp_path / "elsewhere")
    (fruit / "train" / "pear").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "loop").symlink_to(fruit / "train" / "pear")
    assert len(load_images(str(fruit)).train) == 2


def _unlabelled(fruit: Path) -> None:
    write(fruit / "train" / "1.png")


def _empty_class(fruit: Path) -> None:
    (fruit / "train" / "pear" / "1.png").unlink()


def _empty_test_class(fruit: Path) -> None:
    (fruit / "test" / "pear" / "1.png").rename(fruit / "test" / "pear" / "1.txt")


def _class_of_the_test_split(fruit: Path) -> None:
    write(fruit / "test" / "plum" / "1.png")


def _no_test_split(fruit: Path) -> None:
    (fruit / "test").rename(fruit / "tests")


def _two_training_splits(fruit: Path) -> None:
    (fruit / "train").rename(fruit / "Train")
    (fruit / "training").mkdir()


def _one_folder_twice(fruit: Path) -> None:
    (fruit / "test").rename(fruit / "old")
    (fruit / "test").symlink_to(fruit / "train")


def _text(fruit: Path) -> None:
    (fruit / "train" / "pear" / "1.png").write_text("not an image")


def _nothing(fruit: Path) -> None:
    (fruit / "train" / "pear" / "1.png").write_bytes(b"")


def _cut_short(fruit: Path) -> None:
    file = write(fruit / "train" / "pear" / "1.png", np.random.default_rng(0).integers(0, 256, (40, 40), np.uint8))
    file.write_bytes(file.read_bytes()[:900])


def _cut_short_jpeg(fruit: Path) -> None:
    file = write(fruit / "train" / "pear" / "1.jpg", np.random.default_rng(0).integers(0, 256, (40, 40), np.uint8))
    file.write_bytes(file.read_bytes()[:700])


def _another_size(fruit: Path) -> None:
    write(fruit / "test" / "pear" / "1.png", SHADES[:2])


def _of_another_kind(fruit: Path) -> None:
    (fruit / "train" / "pear" / "1.png").rename(fruit / "train" / "pear" / "1.HEIC")


def _floats(fruit: Path) -> None:
    write(fruit / "train" / "pear" / "1.tiff", SHADES.astype(np.float32) / 255)


def _long_integers(fruit: Path) -> None:
    write(fruit / "train" / "pear" / "1.tiff", SHADES.astype(np.int32) * 1000)


def _deep_and_flat(fruit: Path) -> None:
    write(fruit / "train" / "pear" / "1.png", SHADES.astype(np.uint16) * 257)


def _tables_beside_images(fruit: Path) -> None:
    for split in ("train", "test"):
        write_parquet(fruit / split / "more.parquet", [SHADES], [0])


def _one_class(fruit: Path) -> None:
    for split in ("train", "test"):
        for other in [path for path in (fruit / split).iterdir() if path.name != "pear"]:
            shutil.rmtree(other)


def _described_by_half(fruit: Path) -> None:
    (fruit / "train" / "metadata.csv").write_text("file_name,label\npear/0.png,0\n")


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (_one_class, "has the one class pear, and nothing to tell it from"),
        (_described_by_half, "fruit/train/metadata.csv, and no such file for its other split"),
        (_unlabelled, "fruit/train/1.png lies in no class's folder"),
        (_empty_class, "fruit/train/pear holds no image"),
        (_empty_test_class, "fruit/test/pear holds no image"),
        (_class_of_the_test_split, "fruit/test has the class plum, which"),
        (_no_test_split, "one called test or validation, but has train:"),
        (_two_training_splits, "has Train and training, two names of one split"),
        (_one_folder_twice, "are one file"),
        (_text, "fruit/train/pear/1.png is no image that can be decoded"),
        (_nothing, "fruit/train/pear/1.png is no image that can be decoded"),
        (_cut_short, "fruit/train/pear/1.png cannot be read"),
        (_cut_short_jpeg, "fruit/train/pear/1.jpg cannot be read"),
        (_another_size, "sizes, from 2 x 4 to 4 x 4"),
        (_floats, "fruit/train/pear/1.tiff holds floats"),
        (_long_integers, "fruit/train/pear/1.tiff has values from 0 to 255000"),
        (_deep_and_flat, "images of 8 bits and images of 16 bits"),
        (_of_another_kind, "of a kind that is not read here lie in"),
        (_tables_beside_images, "holds both Parquet files and images"),
    ],
)
def test_folders_that_are_refused(fruit: Path, damage: Callable[[Path], None], sentence: str) -> None:
    damage(fruit)
    with pytest.raises(UsageError) as raised:
        load_images(str(fruit))
    assert sentence in str(raised.value)
    assert "\n" not in str(raised.value)


def test_copies_of_training_images_in_the_test_split_are_counted(fruit: Path) -> None:
    shutil.rmtree(fruit / "test")
    shutil.copytree(fruit / "train", fruit / "test")
    write(fruit / "test" / "apple" / "new.png", 255 - SHADES)
    count = sum(1 for _ in (fruit / "test").rglob("*.png"))
    said = f"has {count} test images, of which {count - 1} are training images too"
    for _ in ("decoded", "taken from the cache"):
        done = flatlab("train", "--dataset", fruit, "--show-split", "--clients", "1", "--out", "run", cwd=fruit.parent)
        sentence = f"flatlab: The data set in {fruit} {said}: its test accuracy says less than it seems to.\n"
        assert done.stderr.count(sentence) == 1
        assert "Warning" not in done.stderr


def test_files_whose_names_name_no_one_split(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train-test.parquet", [SHADES], [0])
    with pytest.raises(UsageError, match=r"train-test.parquet is named after the splits train and test"):
        load_images(str(tmp_path))


def test_configurations_side_by_side_are_not_mixed(tmp_path: Path) -> None:
    for language in ("english", "french"):
        for split in ("train", "test"):
            write_parquet(tmp_path / language / f"{split}-0.parquet", [SHADES], [0])
    with pytest.raises(UsageError, match=r"files of splits in .*english and .*french: name one of these"):
        load_images(str(tmp_path))


@pytest.mark.parametrize("which", ["train-1", "test-0"])
def test_files_that_declare_the_classes_in_another_order(tmp_path: Path, which: str) -> None:
    import datasets

    for name in ("train-0", "train-1", "test-0"):
        write_parquet(tmp_path / "set" / f"{name}.parquet", [SHADES], [0])
    file = tmp_path / "set" / f"{which}.parquet"
    table = datasets.Dataset.from_parquet(str(file), cache_dir=str(tmp_path / "cache"))
    names = ["class 1", "class 0", "class 2"]
    table.cast_column("label", datasets.ClassLabel(names=names)).to_parquet(str(file))
    with pytest.raises(UsageError, match="in another order"):
        load_images(str(tmp_path / "set"))


@pytest.mark.parametrize(("train", "test"), [([1, 2], ["1", "2"]), (["a", "b"], [0, 1])])
def test_labels_of_two_types(tmp_path: Path, train: list[Any], test: list[Any]) -> None:
    write_parquet(tmp_path / "train-0.parquet", [SHADES] * 2, train, None)
    write_parquet(tmp_path / "test-0.parquet", [SHADES] * 2, test, None)
    with pytest.raises(UsageError, match="names and whole numbers as labels"):
        load_images(str(tmp_path))


def test_a_broken_image_in_a_parquet_file_is_named_by_its_row(tmp_path: Path) -> None:
    import datasets

    good = Image.fromarray(SHADES)
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    for split, images in (("train", [good, {"bytes": b"broken", "path": None}]), ("test", [good, None])):
        rows = datasets.Dataset.from_dict({"image": images, "label": [0, 1]}, features=features)
        rows.to_parquet(str(tmp_path / f"{split}.parquet"))
    with pytest.raises(UsageError, match=r"row 2 of .*train.parquet is no image that can be decoded"):
        load_images(str(tmp_path))
    (tmp_path / "train.parquet").write_bytes((tmp_path / "test.parquet").read_bytes())
    with pytest.raises(UsageError, match=r"row 2 of .*train.parquet is missing"):
        load_images(str(tmp_path))


def test_images_that_a_table_labels(tmp_path: Path) -> None:
    """The layout with metadata.csv, which `datasets` reads; a folder called test inside train/ is no split."""
    for split in ("train", "test"):
        for name in ("train/1.png", "test/2.png"):
            write(tmp_path / split / name)
        (tmp_path / split / "metadata.csv").write_text("file_name,label\ntrain/1.png,7\ntest/2.png,9\n")
    data = load_images(str(tmp_path))
    assert (data.train.labels.tolist(), data.test.labels.tolist()) == ([0, 1], [0, 1])


@pytest.mark.parametrize("name", ["digits", "cifar100"])
def test_a_known_name_is_never_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.delenv("FLATLAB_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).mkdir()
    (tmp_path / "mine").mkdir()
    assert absolute_name(name) == name
    assert absolute_name(f"./{name}") == str(tmp_path / name)
    assert absolute_name("mine") == str(tmp_path / "mine")
    assert absolute_name("someone/something") == "someone/something"


def test_a_folder_called_digits_does_not_replace_the_bundled_set(tmp_path: Path) -> None:
    (tmp_path / "digits").mkdir()
    done = flatlab("train", "--rounds", "1", "--workers", "1", "--out", "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert 'dataset = "digits"' in (tmp_path / "run" / "config.toml").read_text()
