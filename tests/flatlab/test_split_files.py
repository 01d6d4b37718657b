"""A split as a file: what is written comes back, and everything else ends in one sentence that names the place."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.spatial.distance import jensenshannon

from flatlab.data import Split, load_images
from flatlab.errors import UsageError
from flatlab.federated.config import RunConfig, make_config
from flatlab.federated.execution import Execution, carry_out
from flatlab.federated.heterogeneity import heterogeneity
from flatlab.federated.partition.file import read_split, write_split
from flatlab.federated.world import make_world
from flatlab.runs.checkpoint import load_checkpoint, rebuild
from flatlab.runs.fingerprint import data_digest, owners_source, require_same_data, training_digest
from tests.command_line import flatlab

TRAIN = Split(torch.arange(48, dtype=torch.uint8).view(12, 1, 2, 2), torch.arange(12) % 3)
PARTS = [np.array(part) for part in ([0, 5, 7], [1, 2, 3, 4], [6, 8, 9, 10, 11])]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "split.json"
    write_split(path, TRAIN, PARTS)
    return path


def test_what_is_written_is_read(file: Path) -> None:
    owners = read_split(file, TRAIN)
    for client, part in enumerate(PARTS):
        assert np.flatnonzero(owners == client).tolist() == part.tolist()
    assert json.loads(file.read_text())["data"] == training_digest(TRAIN)


def test_clients_alone_are_enough(file: Path) -> None:
    file.write_text(json.dumps({"clients": {"ann": [*range(6)], "bob": [*range(6, 12)]}}))
    assert read_split(file, TRAIN).tolist() == [0] * 6 + [1] * 6


def test_clients_have_the_numbers_that_they_are_named(file: Path) -> None:
    """Sorted as text, as `json.dump(..., sort_keys=True)` does, 10 stands before 2."""
    named = {str(client): [client] for client in range(12)}
    file.write_text(json.dumps({"clients": named}, sort_keys=True))
    assert read_split(file, TRAIN).tolist() == list(range(12))
    file.write_text(json.dumps({"clients": {"b": [1, 2], "a": [0, *range(3, 12)]}}))
    assert read_split(file, TRAIN).tolist() == [1, 0, 0] + [1] * 9
    file.write_text(json.dumps({"clients": {"1": [0, 1], "0": [2, *range(1, 12)]}}))
    with pytest.raises(UsageError, match="has sample 1 in client '1' and again in '0'"):
        read_split(file, TRAIN)


def test_a_file_of_other_data_is_refused(file: Path) -> None:
    with pytest.raises(UsageError, match="is of other data"):
        read_split(file, Split(TRAIN.images + 1, TRAIN.labels))
    with pytest.raises(UsageError, match="divides 12 samples, but the training set has 11"):
        read_split(file, Split(TRAIN.images[1:], TRAIN.labels[1:]))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("\\xff", "not valid JSON"),
        ('{"clients": {"0": [' + "1" * 5000 + "]}}", "not valid JSON"),
        ("[]", r"is \[\], not a table"),
        ("null", "is None, not a table"),
        ("{}", "has as its clients None"),
        ('{"clients": {}}', "has as its clients {}"),
        ('{"clients": [[1, 2]]}', r"has as its clients \[\[1, 2\]\]"),
        ('{"clients": {"a": []}}', r"has for client 'a' \[\], not a list of samples"),
        ('{"clients": {"a": {"0": 1}}}', "has for client 'a' {'0': 1}"),
        ('{"clients": {"a": [0, true]}}', "client 'a', at place 1, True, not a sample from 0 to 11"),
        ('{"clients": {"a": [0, 1.0]}}', "client 'a', at place 1, 1.0"),
        ('{"clients": {"a": [0, NaN]}}', "client 'a', at place 1, nan"),
        ('{"clients": {"a": [0, -1]}}', "client 'a', at place 1, -1"),
        ('{"clients": {"a": [0, 12]}}', "client 'a', at place 1, 12"),
        ('{"clients": {"a": [0, 1, 0]}}', "has sample 0 in client 'a' and again in 'a'"),
        ('{"clients": {"a": [0, 1], "b": [1]}}', "has sample 1 in client 'a' and again in 'b'"),
        ('{"clients": {"a": [0, 1]}}', "gives sample 2 to no client"),
        ('{"clients": {"a": [0], "a": [1]}}', "has 'a' twice"),
        ('{"clients": {"a": [0]}, "seed": 1}', "has the field 'seed'"),
        ('{"clients": {"a": [0]}, "format": "zip"}', "has the format 'zip'"),
        ('{"clients": {"a": [0]}, "version": 2}', "has the version 2"),
        ('{"clients": {"a": [0]}, "version": true}', "has the version True"),
        ('{"clients": {"a": [0]}, "data": 5}', "is of other data: its digest is 5"),
        ('{"clients": {"a": [0]}, "samples": [12]}', r"divides \[12\] samples"),
    ],
)
def test_malformed_files_are_refused_in_a_sentence(file: Path, text: str, sentence: str) -> None:
    file.write_bytes(text.encode("latin1"))
    with pytest.raises(UsageError, match=sentence):
        read_split(file, TRAIN)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


@given(value=JSON_VALUES, place=st.sampled_from(["whole", "format", "version", "data", "samples", "clients", "client"]))
def test_anything_at_any_place_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, value: Any, place: str
) -> None:
    file = tmp_path_factory.mktemp("any") / "split.json"
    plain: Any = {"clients": {"a": [*range(6)], "b": [*range(6, 12)]}}
    if place == "whole":
        plain = value
    elif place == "client":
        plain["clients"]["b"] = value
    else:
        plain[place] = value
    file.write_text(json.dumps(plain))
    try:
        owners = read_split(file, TRAIN)
    except UsageError as error:
        said = str(error)
    else:
        said = ""
        assert sorted(set(owners.tolist())) == [*range(int(owners.max()) + 1)]
    assert "\n" not in said


def test_missing_files_and_folders_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "none.json", tmp_path):
        with pytest.raises(UsageError, match="Cannot read the split"):
            read_split(path, TRAIN)


def test_a_split_is_shown_drawn_saved_and_trained_on(tmp_path: Path) -> None:
    words = ("train", "--partition", "classes", "--clients", "6", "--classes-per-client", "3")
    done = flatlab(*words, "--show-split", "--draw-split", "split", "--save-split", "split.json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Classes(3)" in done.stdout
    assert "total variation 0.6" in " ".join(done.stdout.split())
    assert {path.name for path in tmp_path.iterdir()} == {"split.png", "split.pdf", "split.csv", "split.json"}
    one = make_world(RunConfig(partition="classes", clients=6, classes_per_client=3))
    read = RunConfig(partition="file", partition_file=str(tmp_path / "split.json"), clients=6)
    other = make_world(read)
    assert all(np.array_equal(a, b) for a, b in zip(one.parts, other.parts, strict=True))
    assert data_digest(one.data) != data_digest(other.data)  # the file's content is part of the run's fingerprint
    refused = flatlab("train", "--partition", "file", "--partition-file", "split.json", cwd=tmp_path)
    assert refused.returncode == 2
    assert "add --clients 6" in " ".join(refused.stderr.split())


def test_a_split_that_changed_is_named_as_what_did(tmp_path: Path) -> None:
    train = load_images("digits").train
    half = len(train) // 2
    file = tmp_path / "split.json"
    config = make_config({"partition": "file", "partition_file": str(file), "clients": 2, "rounds": 1})
    runs = []
    for name, first in (("one", half), ("other", half + 1)):
        write_split(file, train, [np.arange(first), np.arange(first, len(train))])
        carry_out(config, tmp_path / name, Execution(workers=1))
        runs.append((name, config, load_checkpoint(tmp_path / name / "final.pt").data))
    said = f"its images or labels, or the split in {file}, have changed"
    with pytest.raises(UsageError, match=said):
        carry_out(config, tmp_path / "one", Execution(workers=1))
    with pytest.raises(UsageError, match=said):
        rebuild(load_checkpoint(tmp_path / "one" / "final.pt"))
    with pytest.raises(UsageError, match=f"both called digits, or by another split in {file}: their numbers"):
        require_same_data(runs)
    assert owners_source(make_config({"partition": "column", "partition_column": "who"})) == "column 'who'"


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"partition": "file"}, "partition = file needs partition_file"),
        ({"partition": "column"}, "partition = column needs partition_column"),
        ({"partition_file": "a.json"}, "partition_file goes with partition = file, not dirichlet"),
        ({"partition": "classes", "partition_column": "a"}, "partition_column goes with partition = column"),
        ({"partition": "pareto"}, "no such split; choose from iid, dirichlet"),
        ({"classes_per_client": 0}, "greater than or equal to 1"),
        ({"sigma": -1.0}, "greater than or equal to 0"),
        ({"holdout": 1.0}, "less than 1"),
        ({"image_size": 0}, "greater than or equal to 1"),
        ({"augmentation": "mixup"}, "'auto', 'none' or 'flip-crop'"),
    ],
)
def test_fields_of_splits_have_bounds(fields: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        RunConfig.model_validate(fields)


@st.composite
def counts(draw: st.DrawFn) -> NDArray[np.int64]:
    shape = draw(st.tuples(st.integers(1, 6), st.integers(1, 6)))
    values = draw(st.lists(st.integers(0, 50), min_size=shape[0] * shape[1], max_size=shape[0] * shape[1]))
    table = np.array(values, dtype=np.int64).reshape(shape)
    table[table.sum(axis=1) == 0, 0] = 1
    return table


@given(table=counts())
def test_distances_are_as_scipy_has_them(table: NDArray[np.int64]) -> None:
    measured = heterogeneity(table)
    whole = table.sum(axis=0) / table.sum()
    for row, variation, divergence in zip(table, measured.total_variation, measured.jensen_shannon, strict=True):
        own = row / row.sum()
        assert divergence == pytest.approx(np.nan_to_num(jensenshannon(own, whole, base=2)) ** 2, abs=1e-9)
        assert variation == pytest.approx(max(0, *(own - whole)[own > whole].cumsum(), 0), abs=1e-12)
        assert 0 <= divergence <= variation + 1e-12  # Lin (1991), theorem 3
