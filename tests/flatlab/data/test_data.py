"""Data sets by name, in folders and files: what is read, and what is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from flatlab.data import Reading, load_images, normalise
from flatlab.errors import UsageError
from flatlab.federated.request import read_fields
from tests.flatlab.data.parquet_images import random_images, write_parquet


@pytest.fixture
def unreachable_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """No process listens on port 9 of this machine."""
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)


def test_digits() -> None:
    data = load_images("digits")
    assert (len(data.train), len(data.test), data.classes, data.input_shape) == (1438, 359, 10, (1, 8, 8))
    assert data.train.images.dtype == torch.uint8
    assert data.train.labels.dtype == torch.int64
    assert not data.augment
    pixels = data.train.images.double() / 255
    assert pixels.max() == 1
    torch.testing.assert_close(torch.tensor(data.mean), pixels.mean((0, 2, 3)).float(), atol=5e-5, rtol=0)
    torch.testing.assert_close(torch.tensor(data.std), pixels.std((0, 2, 3), correction=0).float(), atol=5e-5, rtol=0)
    share = data.test.labels.bincount() / (data.train.labels.bincount() + data.test.labels.bincount())
    assert ((share > 0.19) & (share < 0.21)).all()


def test_a_local_folder_of_parquet_files(folder: Path) -> None:
    data = load_images(str(folder))
    expected = torch.from_numpy(np.stack(random_images(18))).permute(0, 3, 1, 2)
    assert torch.equal(data.train.images, expected[:12])
    assert torch.equal(data.test.images, expected[12:])
    assert data.train.labels.tolist() == [0, 1, 2] * 4
    assert (data.name, data.classes, data.input_shape, data.augment) == ("pictures", 3, (3, 6, 5), False)
    pixels = expected[:12].double() / 255
    assert data.mean == pytest.approx(pixels.mean((0, 2, 3)).tolist(), abs=1e-12)
    assert data.std == pytest.approx(pixels.std((0, 2, 3), correction=0).tolist(), abs=1e-12)


def test_a_local_folder_of_images(tmp_path: Path) -> None:
    for split, count in (("train", 3), ("test", 2)):
        for c, name in enumerate(("apple", "pear")):
            for i in range(count):
                file = tmp_path / "fruit" / split / name / f"{i}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(np.full((4, 4), 10 * c + i, dtype=np.uint8)).save(file)
    data = load_images(str(tmp_path / "fruit"))
    assert (data.input_shape, data.classes) == ((1, 4, 4), 2)
    found = sorted(zip(data.train.labels.tolist(), data.train.images[:, 0, 0, 0].tolist(), strict=True))
    assert found == [(0, 0), (0, 1), (0, 2), (1, 10), (1, 11), (1, 12)]
    assert len(data.test) == 4


def test_a_colour_that_no_image_has_is_zero(tmp_path: Path) -> None:
    for split in ("train", "test"):
        images = random_images(6)
        for image in images:
            image[..., 2] = 0
        write_parquet(tmp_path / "yellow" / f"{split}-0.parquet", images, [0, 1, 2] * 2)
    data = load_images(str(tmp_path / "yellow"))
    result = normalise(data.train.images, data.mean, data.std)
    assert result[:, 2].eq(0).all()
    assert result.std(dim=(0, 2, 3), correction=0).tolist() == pytest.approx([1, 1, 0])


@pytest.mark.parametrize("by", ["argument", "environment"])
def test_the_root_of_local_copies(folder: Path, by: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if by == "environment":
        monkeypatch.setenv("FLATLAB_DATA", str(folder.parent))
    data = load_images("pictures", root=folder.parent if by == "argument" else None)
    assert len(data.train) == 12


def test_the_root_is_looked_in_before_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for place, rows in (("root", 20), ("here", 10)):
        (tmp_path / place).mkdir()
        (tmp_path / place / "t.csv").write_text("a,b,label\n" + "".join(f"{k},{k * k},{k % 2}\n" for k in range(rows)))
    monkeypatch.chdir(tmp_path / "here")
    root, fields = Path("../root"), {"dataset": "t.csv", "holdout": 0.2}
    config = read_fields(None, None, fields, [], resume=False, out=None, data_root=root)
    assert config.dataset == "t.csv"
    assert len(load_images(config.dataset, root=root, reading=Reading(holdout=0.2)).train) == 16
    config = read_fields(None, None, fields, [], resume=False, out=None)
    assert config.dataset == str(tmp_path / "here" / "t.csv")
    (tmp_path / "here" / "t.csv").rename(tmp_path / "root" / "t.csv")  # moved: its last name is found in the root
    assert len(load_images(config.dataset, root=root, reading=Reading(holdout=0.2)).train) == 8


@pytest.mark.parametrize("by", ["name", "path"])
def test_a_known_name_brings_its_constants(folder: Path, by: str) -> None:
    copy = folder.rename(folder.parent / "cifar100")
    data = load_images("cifar100", root=copy.parent) if by == "name" else load_images(str(copy))
    assert (data.name, data.augment) == ("cifar100", True)
    assert data.mean == (0.5071, 0.4867, 0.4408)
    assert data.std == (0.2675, 0.2565, 0.2761)


def test_a_known_name_with_other_channels(tmp_path: Path) -> None:
    for split in ("train", "test"):
        write_parquet(tmp_path / "cifar10" / f"{split}-0.parquet", random_images(3, (4, 4)), [0, 1, 2])
    with pytest.raises(UsageError, match="is not cifar10: its images have 1 channels, not 3"):
        load_images("cifar10", root=tmp_path)


def test_grey_images_among_coloured_ones_become_coloured(tmp_path: Path) -> None:
    grey, colour = random_images(2, (4, 4)), random_images(2, (4, 4, 3))
    write_parquet(tmp_path / "mixed" / "train-0.parquet", [grey[0], colour[0]], [0, 1])
    write_parquet(tmp_path / "mixed" / "validation-0.parquet", [grey[1]], [1])
    data = load_images(str(tmp_path / "mixed"))
    assert data.train.images[0].tolist() == [grey[0].tolist()] * 3
    assert torch.equal(data.train.images[1], torch.from_numpy(colour[0]).permute(2, 0, 1))
    assert data.test.images[0].tolist() == [grey[1].tolist()] * 3


@pytest.mark.parametrize(
    ("train", "test", "numbers"),
    [([3, 7, 5], [7, 5], ([0, 2, 1], [2, 1])), (["pear", "fig"], ["pear"], ([1, 0], [1]))],
)
def test_undeclared_classes_are_numbered_in_order(
    tmp_path: Path, train: list[Any], test: list[Any], numbers: tuple[list[int], list[int]]
) -> None:
    write_parquet(tmp_path / "plain" / "train-0.parquet", random_images(len(train)), train, None)
    write_parquet(tmp_path / "plain" / "test-0.parquet", random_images(len(test)), test, None)
    data = load_images(str(tmp_path / "plain"))
    assert (data.train.labels.tolist(), data.test.labels.tolist()) == numbers
    assert data.classes == len(set(train))


@pytest.mark.parametrize("name", ["test-00000-of-00001.parquet", "notes.txt"])
def test_a_link_to_nothing_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(folder / "gone")
    with pytest.raises(UsageError, match=f"{folder / name} points to nothing: mend it, or remove it"):
        load_images(str(folder))


@pytest.mark.usefixtures("unreachable_hub")
@pytest.mark.parametrize("name", ["cifar10", "fashion-mnist", "someone/something"])
def test_data_that_are_nowhere(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as raised:
        load_images(name, root=tmp_path)
    sentence = str(raised.value)
    assert f"'{name}'" in sentence
    assert f"in {tmp_path / name}" in sentence
    assert "cannot be reached" in sentence
    assert "--data-root or FLATLAB_DATA" in sentence
    assert "\n" not in sentence


def test_a_name_that_cannot_be_one() -> None:
    with pytest.raises(UsageError, match=r"'no/such/folder' is neither a folder nor the name of a data set"):
        load_images("no/such/folder")


def test_a_root_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nowhere"):
        load_images("cifar10", root=tmp_path / "nowhere")


def _without_test(folder: Path) -> None:
    (folder / "test-00000-of-00001.parquet").unlink()


def _empty(folder: Path) -> None:
    for file in folder.iterdir():
        file.unlink()


def _corrupt(folder: Path) -> None:
    (folder / "train-00001-of-00002.parquet").write_bytes(b"PAR1 not really")


def _corrupt_image(folder: Path) -> None:
    import pyarrow as pa  # type: ignore[import-untyped]
    from pyarrow import parquet

    file = folder / "train-00001-of-00002.parquet"
    table = parquet.read_table(file)
    broken = pa.array([{"bytes": b"no image", "path": None}] * len(table), table.schema.field("picture").type)
    parquet.write_table(table.set_column(0, table.schema.field("picture"), broken), file)


def _without_labels(folder: Path) -> None:
    for file in folder.iterdir():
        write_parquet(file, random_images(2), ["a", "b"], None, label="caption")


def _missing_label(folder: Path) -> None:
    write_parquet(folder / "test-00000-of-00001.parquet", random_images(2), [0, None])


def _hidden_test_labels(folder: Path) -> None:
    write_parquet(folder / "test-00000-of-00001.parquet", random_images(2), [-1, -1], None)


def _two_sizes(folder: Path) -> None:
    write_parquet(folder / "test-00000-of-00001.parquet", random_images(2, (9, 9, 3)), [0, 1])


def _no_images(folder: Path) -> None:
    for file in list(folder.iterdir()):
        file.unlink()
    (folder / "train.jsonl").write_text('{"a": 1, "label": 0}\n')
    (folder / "test.jsonl").write_text('{"a": 1, "label": 0}\n')


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (_without_test, "needs a split called train and one called test or validation, but has train"),
        (_empty, "needs a split called train and one called test or validation, but has none"),
        (_corrupt, "train-00001-of-00002.parquet is not a whole Parquet file"),
        (_corrupt_image, "train-00001-of-00002.parquet is no image that can be decoded"),
        (_without_labels, "has no column of labels"),
        (_missing_label, "has a label that is neither a whole number nor a name: None"),
        (_hidden_test_labels, "has the label -1 in its test split"),
        (_two_sizes, "has images of 2 sizes, from 6 x 5 to 9 x 9"),
        (_no_images, "must have one column of images, but has none: numbers are read from CSV and Parquet files"),
    ],
)
def test_folders_that_are_no_data_set(folder: Path, own_cache: Path, damage: Any, sentence: str) -> None:
    damage(folder)
    with pytest.raises(UsageError) as raised:
        load_images(str(folder))
    assert sentence in str(raised.value)
    assert str(folder) in str(raised.value)
    assert "\n" not in str(raised.value)
    assert not [path for path in own_cache.rglob("*") if path.suffix != ".lock"]
