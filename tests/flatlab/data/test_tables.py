"""Tables of numbers in files: what is read from them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flatlab.data import Reading, load_images
from flatlab.errors import UsageError
from flatlab.federated.config import RunConfig
from flatlab.federated.world import make_world
from tests.command_line import flatlab
from tests.flatlab.data.csv_rows import HEADER, XY, rows, write
from tests.flatlab.hub_cache import HubCache

READING = Reading(label="fruit", holdout=0.25)


def scaled(train: list[list[Any]], other: list[list[Any]]) -> torch.Tensor:
    """The first three columns of `other`, scaled by `train`."""
    known, wanted = (np.array([row[:3] for row in part], dtype=float) for part in (train, other))
    return torch.from_numpy((wanted - known.mean(0)) / known.std(0))


def test_two_files_are_scaled_by_the_training_rows(tmp_path: Path) -> None:
    train, test = rows(40), rows(12, seed=1)
    write(tmp_path / "fruit" / "train-0.csv", train[:25])
    write(tmp_path / "fruit" / "train-1.csv", train[25:])
    others = (4, 2, 0, 1)  # in another order, and of no farm
    write(tmp_path / "fruit" / "test.csv", [[row[k] for k in others] for row in test], [HEADER[k] for k in others])
    data = load_images(str(tmp_path / "fruit"), reading=Reading(label="fruit", column="farm"))
    torch.testing.assert_close(data.train.images, scaled(train, train))
    torch.testing.assert_close(data.test.images, scaled(train, test))
    assert data.train.labels.tolist() == [k % 2 for k in range(40)]
    assert data.train.owners is not None
    assert data.train.owners.tolist() == [k % 2 for k in range(40)]
    assert (data.classes, data.input_shape, data.of_images) == (2, (3,), False)


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_what_delimits_is_found(tmp_path: Path, delimiter: str) -> None:
    content = [[*row[:3], row[4]] for row in rows()]
    file = write(tmp_path / "fruit.csv", content, (*HEADER[:3], "fruit"), delimiter)
    data = load_images(str(file), reading=READING)
    assert (len(data.train), len(data.test), data.input_shape) == (30, 10, (3,))
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())  # as a spreadsheet begins a file
    marked = load_images(str(file), reading=READING)
    assert marked.train.images.equal(data.train.images)


def test_a_share_is_held_out_before_anything_is_scaled(tmp_path: Path) -> None:
    content = [[*row[:3], row[4]] for row in rows()]
    data = load_images(str(write(tmp_path / "fruit.csv", content, (*HEADER[:3], "fruit"))), reading=READING)
    torch.testing.assert_close(data.train.images.mean(0), torch.zeros(3, dtype=torch.float64))
    torch.testing.assert_close(data.train.images.std(0, correction=0), torch.ones(3, dtype=torch.float64))
    whole = scaled(content, content)
    slope = (data.train.images[1] - data.train.images[0]) / (whole[1] - whole[0])
    assert not torch.allclose(slope, torch.ones(3, dtype=torch.float64), rtol=1e-3)
    assert torch.bincount(data.test.labels).tolist() == [5, 5]


def test_parquet_and_the_hub_have_the_same_rows(tmp_path: Path, hub: HubCache) -> None:
    import datasets

    content = [[*row[:3], row[4]] for row in rows()]
    expected = load_images(str(write(tmp_path / "fruit.csv", content, (*HEADER[:3], "fruit"))), reading=READING)
    table = datasets.Dataset.from_dict(dict(zip((*HEADER[:3], "fruit"), zip(*content, strict=True), strict=True)))
    table.to_parquet(str(tmp_path / "fruit.parquet"))
    hub.put("fruit", "default", {"train": table})
    for name in (str(tmp_path / "fruit.parquet"), "someone/fruit"):
        found = load_images(name, reading=READING)
        assert found.train.images.equal(expected.train.images)
        assert found.test.labels.equal(expected.test.labels)


@pytest.mark.parametrize(
    ("written", "numbers"),
    [
        (["1", "01", "1"], [1, 0, 1]),
        (["null", "NA", "x"], [1, 0, 2]),
        (["10", "9", "-1"], [2, 1, 0]),
        (["10", "9", "ten"], [0, 1, 2]),
        (["1.0", "0.0", "1.0"], [1, 0, 1]),
        (["true", "false", "true"], [1, 0, 1]),
    ],
)
def test_labels_are_as_they_are_written(written: list[str], numbers: list[int], tmp_path: Path) -> None:
    for k, split in enumerate(("train", "test")):
        write(tmp_path / "codes" / f"{split}.csv", [[k + x, y] for x, y in zip((1, 3, 5), written, strict=True)], XY)
    data = load_images(str(tmp_path / "codes"))
    assert data.train.labels.tolist() == data.test.labels.tolist() == numbers


@pytest.mark.parametrize("before", ["\n", "\r\n\r\n", "\ufeff\n"])
@pytest.mark.parametrize("delimiter", [",", ";"])
@pytest.mark.parametrize("name", ["x", '"x\n(cm)"', '"a ""long"" x"', 'x"a'])
def test_the_header_is_the_first_line_that_is_not_empty(before: str, delimiter: str, name: str, tmp_path: Path) -> None:
    lines = [delimiter.join((str(k), ("01", "1")[k % 2], ("NA", "7")[k % 2])) for k in range(8)]
    file = tmp_path / "codes.csv"
    file.write_text(before + "\n".join([delimiter.join((name, "label", "who")), *lines, ""]), encoding="utf-8")
    data = load_images(str(file), reading=Reading(holdout=0.25, column="who"))
    assert (data.classes, data.input_shape) == (2, (1,))
    assert data.train.owners is not None
    assert data.train.owners.equal(1 - data.train.labels)  # "7" before "NA"


def test_names_beyond_what_one_field_may_hold_are_read(tmp_path: Path) -> None:
    names = [f"{k:0100d}." for k in range(1500)]
    content = [[*(k * place % 7 for place in range(len(names))), k % 2] for k in range(8)]
    data = load_images(
        str(write(tmp_path / "genes.tsv", content, [*names, "label"], "\t")), reading=Reading(holdout=0.25)
    )
    assert data.input_shape == (1500,)


@pytest.mark.parametrize(
    "names", [range(6), range(1990, 1984, -1), (400.5, 401.0, 401.5, 402.0, 402.5, 403.0, 403.5, 404.0)]
)
def test_names_may_be_numbers_that_count(names: Sequence[float], tmp_path: Path) -> None:
    """As pandas numbers columns, and as years and wavelengths are written."""
    content = [[*(k * place % 7 for place in range(len(names))), k % 2] for k in range(8)]
    file = write(tmp_path / "c.csv", content, [*map(str, names), "label"])
    assert load_images(str(file), reading=Reading(holdout=0.25)).input_shape == (len(names),)


def test_a_column_that_does_not_vary_is_zero(tmp_path: Path) -> None:
    content = [[0.1, 1e-9 * k, "ab"[k % 2]] for k in range(20)]
    data = load_images(
        str(write(tmp_path / "c.csv", content, ("same", "small", "label"))), reading=Reading(holdout=0.2)
    )
    assert data.train.images[:, 0].tolist() == [0.0] * 16
    assert data.train.images[:, 1].std(correction=0) == pytest.approx(1)


@settings(max_examples=25)
@given(st.lists(st.floats(-1e100, 1e100), min_size=8, max_size=30).filter(lambda x: len(set(x)) > 4))
def test_any_numbers_are_scaled_or_refused(tmp_path_factory: pytest.TempPathFactory, numbers: list[float]) -> None:
    folder = tmp_path_factory.mktemp("rows")
    for split in ("train", "test"):
        write(folder / f"{split}.csv", [[x, k % 2] for k, x in enumerate(numbers)], XY)
    with pytest.warns(UserWarning, match="are training rows too"):
        found = load_images(str(folder)).train.images
    assert found.isfinite().all()
    assert found.mean().item() == pytest.approx(0, abs=1e-6)
    assert found.std(correction=0).item() == pytest.approx(1)


def test_names_and_values_have_no_spaces_around_them(tmp_path: Path) -> None:
    plain, spaced = tmp_path / "plain.csv", tmp_path / "spaced.csv"
    rows = [[0.5 * k, (3 * k) % 7, f"{k % 2:02}"] for k in range(40)]
    plain.write_text("a,b,label\n" + "".join(f"{a},{b},{y}\n" for a, b, y in rows))
    spaced.write_text("a, b, label \n" + "".join(f"{a}, {b}, {y} \n" for a, b, y in rows))
    one, other = (load_images(str(file), reading=Reading(holdout=0.25)) for file in (plain, spaced))
    assert torch.equal(one.train.images, other.train.images)
    assert torch.equal(one.train.labels, other.train.labels)
    spaced.write_text("a, a, label\n0, 1, 0\n1, 0, 1\n")
    with pytest.raises(UsageError, match="two columns 'a'"):
        load_images(str(spaced), reading=Reading(holdout=0.5))


@pytest.mark.filterwarnings("error")
def test_numbers_without_a_common_scale_are_refused(tmp_path: Path) -> None:
    for large in (1e200, 1e-200):
        file = write(tmp_path / "x.csv", [[large * k, k % 2] for k in range(8)], XY)
        with pytest.raises(UsageError, match="that lie too far apart, or too close, to scale"):
            load_images(str(file), reading=Reading(holdout=0.25))


@pytest.mark.parametrize("name", ["label", "labels", "class", "fine_label"])
def test_a_column_called_as_labels_are_is_an_input_where_another_is_named(name: str, tmp_path: Path) -> None:
    content = [[k, k % 3, ("01", "1")[k % 2]] for k in range(8)]
    file = write(tmp_path / "x.csv", content, ("x", name, "kind"))
    data = load_images(str(file), reading=Reading(label="kind", holdout=0.25))
    assert (data.input_shape, data.classes) == ((2,), 2)


def test_clients_are_the_values_of_a_column(tmp_path: Path) -> None:
    file = write(tmp_path / "fruit.csv", rows())
    fields = {"dataset": str(file), "label_column": "fruit", "holdout": 0.25, "partition": "column", "clients": 2}
    world = make_world(RunConfig.model_validate({**fields, "partition_column": "farm"}))
    assert world.config.model == "mlp"
    assert sorted(map(len, world.parts)) == [15, 15]


def test_a_file_trains_and_is_measured_from_another_folder_until_it_changes(tmp_path: Path) -> None:
    content = [[*row[:3], row[4]] for row in rows()]
    write(tmp_path / "fruit.csv", content, (*HEADER[:3], "fruit"))
    words = (
        "--dataset",
        "fruit.csv",
        "--label-column",
        "fruit",
        "--holdout",
        "0.25",
        "--clients",
        "3",
        "--rounds",
        "1",
    )
    done = flatlab("train", *words, "--workers", "1", "--out", "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (tmp_path / "elsewhere").mkdir()
    done = flatlab("eigs", "../run/final.pt", "--full", cwd=tmp_path / "elsewhere")
    assert done.returncode == 0, done.stderr
    assert "fc1" in done.stdout
    write(tmp_path / "fruit.csv", content[:-1], (*HEADER[:3], "fruit"))
    done = flatlab("eigs", "../run/final.pt", "--full", cwd=tmp_path / "elsewhere")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("train", "test", "numbers"),
    [(["1", "2", "other"], ["1", "2"], [0, 1]), (["01", "10"], ["10"], [1]), (["10", "2"], ["2"], [0])],
)
def test_labels_are_read_alike_in_both_splits(
    train: list[str], test: list[str], numbers: list[int], tmp_path: Path
) -> None:
    for name, labels in (("train", train), ("test", test)):
        write(tmp_path / "f" / f"{name}.csv", [[k, labels[k % len(labels)]] for k in range(12)], XY)
    data = load_images(str(tmp_path / "f"))
    assert data.classes == len(train)
    assert sorted(set(data.test.labels.tolist())) == numbers
