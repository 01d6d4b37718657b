"""Checkpoints: complete, and safe to open wherever they come from."""

import importlib.metadata
import os
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import flatlab
from flatlab.errors import UsageError
from flatlab.federated.config import make_config
from flatlab.federated.models import build_model
from flatlab.federated.world import initial_model, resolve
from flatlab.runs.checkpoint import Checkpoint, load_checkpoint, provenance, rebuild, save_checkpoint
from flatlab.runs.fingerprint import data_digest


@pytest.fixture
def checkpoint() -> Checkpoint:
    config, data = resolve(make_config({"hidden": [5], "seed": 4}))
    return Checkpoint(config, 7, initial_model(config, data).state_dict(), {}, {"test_accuracy": 0.5}, {"torch": "x"})


def test_a_checkpoint_is_enough_to_rebuild_model_and_data(checkpoint: Checkpoint, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "c.pt", checkpoint)
    loaded = load_checkpoint(tmp_path / "c.pt")
    assert (loaded.config, loaded.round, loaded.metrics) == (checkpoint.config, 7, {"test_accuracy": 0.5})
    model, data = rebuild(loaded)
    for name, value in model.state_dict().items():
        assert torch.equal(value, checkpoint.state_dict[name])
    assert model(data.test.images[:3].float()).shape == (3, 10)


def test_what_an_earlier_round_scored_is_not_this_ones(checkpoint: Checkpoint, tmp_path: Path) -> None:
    for round_, kept in ((7, True), (6, False)):
        metrics = {"round": round_, "test_accuracy": 0.5}
        save_checkpoint(tmp_path / "c.pt", replace(checkpoint, metrics=metrics))
        assert load_checkpoint(tmp_path / "c.pt").metrics == (metrics if kept else {})


class RunsCode:
    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, ("hostile",)


def hostile(path: Path) -> None:
    torch.save({"format": "flatlab checkpoint", "config": RunsCode()}, path)


def hostile_raw(path: Path) -> None:
    path.write_bytes(pickle.dumps(RunsCode()))


def foreign(path: Path) -> None:
    torch.save({"weight": torch.zeros(3)}, path)


def a_list(path: Path) -> None:
    torch.save([1, 2], path)


def empty(path: Path) -> None:
    path.touch()


def text(path: Path) -> None:
    path.write_text("not a checkpoint at all")


def newer(path: Path) -> None:
    torch.save({"format": "flatlab checkpoint", "version": 99}, path)


def lacking(path: Path) -> None:
    torch.save({"format": "flatlab checkpoint", "version": 1, "config": {}}, path)


def bad_config(path: Path) -> None:
    torch.save({"format": "flatlab checkpoint", "version": 1, "config": {"rounds": "many"}}, path)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (hostile, "would run code"),
        (hostile_raw, "would run code|truncated"),
        (foreign, "not a flatlab checkpoint"),
        (a_list, "not a flatlab checkpoint"),
        (empty, "truncated|not a flatlab"),
        (text, "truncated|not a flatlab"),
        (newer, "newer flatlab"),
        (lacking, "lacks its 'round'"),
        (bad_config, "rounds = 'many'"),
    ],
)
def test_bad_files_are_refused_in_one_sentence(
    make: Callable[[Path], None], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make(tmp_path / "bad.pt")
    with pytest.raises(UsageError, match=message) as caught:
        load_checkpoint(tmp_path / "bad.pt")
    assert "bad.pt" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "hostile").exists()


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
def test_a_truncated_checkpoint_is_refused(share: float, checkpoint: Checkpoint, tmp_path: Path) -> None:
    path = tmp_path / "c.pt"
    save_checkpoint(path, checkpoint)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(UsageError, match=r"truncated|not a flatlab"):
        load_checkpoint(path)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="There is no file"):
        load_checkpoint(tmp_path / "none.pt")
    with pytest.raises(UsageError, match="Cannot read"):
        load_checkpoint(tmp_path)


def test_a_checkpoint_does_not_choose_what_is_imported(checkpoint: Checkpoint) -> None:
    config = checkpoint.config.model_copy(update={"model": "shutil:rmtree"})
    with pytest.raises(UsageError, match="add --model shutil:rmtree"):
        rebuild(Checkpoint(config, 1, {}, {}, {}, {}))


def test_parameters_that_do_not_fit_are_named(checkpoint: Checkpoint) -> None:
    other = build_model("mlp", input_shape=(1, 8, 8), classes=10, hidden=(6,)).state_dict()
    with pytest.raises(UsageError, match=r"do not fit its model mlp: size mismatch for fc1"):
        rebuild(Checkpoint(checkpoint.config, 1, other, {}, {}, {}))


def test_a_failed_write_leaves_the_old_file(checkpoint: Checkpoint, tmp_path: Path) -> None:
    path = tmp_path / "c.pt"
    save_checkpoint(path, checkpoint)
    before = path.read_bytes()
    unwritable = Checkpoint(checkpoint.config, 8, {}, {}, {"bad": (lambda: 0)}, {})
    with pytest.raises((AttributeError, pickle.PicklingError)):
        save_checkpoint(path, unwritable)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["c.pt"]


def test_a_checkpoint_is_not_measured_on_data_that_changed_since(checkpoint: Checkpoint) -> None:
    _, data = rebuild(checkpoint)
    rebuild(replace(checkpoint, data=data_digest(data)))
    with pytest.raises(UsageError, match="digits is not the one on which this checkpoint was trained"):
        rebuild(replace(checkpoint, data="0" * 16))


def test_what_made_a_number_is_known_of_a_source_tree_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing_installed(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata.Distribution, "from_name", nothing_installed)
    with pytest.raises(importlib.metadata.PackageNotFoundError):
        importlib.metadata.version("flatlab")
    made = provenance()
    assert (made["flatlab"], made["torch"]) == (flatlab.__version__, torch.__version__)
    assert all(type(value) is str for value in made.values())  # a checkpoint holds no other class
