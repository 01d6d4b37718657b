"""A finished run's metrics are its own, and whole: else no table calls what they end with its accuracy."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from flatlab.errors import UsageError
from flatlab.grid.saved_results import read_results
from flatlab.runs.checkpoint import load_checkpoint, save_checkpoint

NAME = "fedavg-iid-s0"


@pytest.fixture
def run(results: Path) -> Path:
    """One of the runs in `results`, whose checkpoint keeps its last evaluation, as training leaves it."""
    folder = results / NAME
    metrics = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    save_checkpoint(folder / "final.pt", replace(load_checkpoint(folder / "final.pt"), metrics=metrics))
    return folder


def _cut(run: Path, lines: int) -> None:
    path = run / "metrics.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:lines]))


def _of_another_run(run: Path) -> None:
    shutil.copy(run.parent / "fedavg-iid-s1" / "metrics.jsonl", run / "metrics.jsonl")


DAMAGED = [
    (
        lambda run: _cut(run, 19),
        "has its newest evaluation in round 15, and the run beside it is finished, after round 20",
    ),
    (lambda run: _cut(run, 3), "has no evaluation, and the run beside it is finished, after round 20"),
    (lambda run: (run / "metrics.jsonl").unlink(), "has no evaluation, and"),
    (_of_another_run, "has test_accuracy = 0.49 in round 20, and final.pt beside it 0.48, so that one of them is of"),
]


@pytest.mark.parametrize("grid", [True, False])
@pytest.mark.parametrize(("damage", "said"), DAMAGED)
def test_metrics_that_are_not_all_of_the_finished_run_are_refused(
    damage: Callable[[Path], object], said: str, grid: bool, run: Path
) -> None:
    if not grid:
        (run.parent / "grid.toml").unlink()
    assert len(read_results(run.parent).runs) == 30
    damage(run)
    with pytest.raises(UsageError, match=said) as caught:
        read_results(run.parent)
    assert str(caught.value).startswith(f"{run}/metrics.jsonl has ")


@pytest.mark.parametrize(("damage", "said"), DAMAGED)
def test_they_are_the_failure_of_their_cell_alone(
    damage: Callable[[Path], object], said: str, run: Path, flatlab: Callable[..., int], tmp_path: Path
) -> None:
    damage(run)
    words = ("reproduce", str(run.parent / "grid.toml"), "--out", str(run.parent), "--list-cells")
    assert flatlab(*words, "--json", str(tmp_path / "cells.json")) == 0
    cells = json.loads((tmp_path / "cells.json").read_text())["cells"]
    assert [name for name, cell in cells.items() if cell["state"] == "failed"] == [NAME]
    assert said in cells[NAME]["failure"]


def test_without_weights_a_run_is_finished_by_the_evaluation_of_its_last_round(run: Path) -> None:
    (run / "final.pt").unlink()
    at = [each.name for each in read_results(run.parent).runs].index(NAME)
    assert read_results(run.parent).runs[at].accuracy == 0.48
    path = run / "metrics.jsonl"
    path.write_text(path.read_text().replace("test_accuracy", "accuracy"))
    with pytest.raises(UsageError, match="has no evaluation"):
        read_results(run.parent)
    _cut(run, 15)  # begun anew, as far as is known
    assert not read_results(run.parent).runs[at].trained


def test_a_checkpoint_of_another_run_than_config_toml_says_is_named(run: Path) -> None:
    (run.parent / "grid.toml").unlink()
    shutil.copy(run.parent / "fedavg-iid-s1" / "final.pt", run / "final.pt")
    with pytest.raises(
        UsageError, match=rf"{NAME} holds a run with another seed \(1; config.toml says 0\): bring back"
    ):
        read_results(run.parent)
