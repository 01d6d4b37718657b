"""Every command on two checkpoints: shown side by side, drawn, and written as rows."""

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from flatlab.cli.watched_run import train_run
from flatlab.federated.config import make_config
from flatlab.federated.execution import Execution
from flatlab.runs.checkpoint import load_checkpoint, save_checkpoint
from tests.flatlab.curvature_commands.conftest import RUN
from tests.flatlab.dense_mlp import Run

FIGURES: dict[tuple[str, ...], tuple[int, str]] = {
    ("eigs",): (2 * 3, "eigenvalue"),
    ("eigs", "--clients", "all"): (2 * 4, "eigenvalue"),
    ("eigs", "--per-batch", "50", "--top-k", "2"): (2 * 4 * 2, "eigenvalue"),
    ("trace", "--tol", "0.5"): (2 * 3, "value"),
    ("trace", "--flatness", "--tol", "0.5"): (2 * 2, "by_trace"),
    ("density", "--depth", "20", "--probes", "2"): (2 * 400, "density"),
    ("density", "--layers", "--depth", "20", "--probes", "2"): (2 * 3 * 400, "density"),
    ("eigs", "--which", "both", "--matrix", "fisher"): (2 * 3, "eigenvalue"),
    ("surface", "--points", "5"): (2 * 25, "loss"),
    ("surface", "--line", "--along", "eigenvectors", "--points", "5"): (2 * 5, "loss"),
}


@pytest.mark.long
@pytest.mark.parametrize("words", FIGURES, ids=" ".join)
def test_several_subjects_are_shown_side_by_side_and_drawn(
    words: tuple[str, ...],
    run: Run,
    checkpoints: tuple[Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    result = run(*words, *checkpoints, "--figure", "drawn/it.png")
    said = capsys.readouterr().out
    assert "[1]" in said
    assert "/[1]" in said
    assert f"[2] {checkpoints[1]}: " in said
    assert [one["checkpoint"] for one in result["checkpoints"]] == list(map(str, checkpoints))
    assert (tmp_path / "drawn" / "it.png").stat().st_size > 5000
    assert (tmp_path / "drawn" / "it.pdf").read_bytes().startswith(b"%PDF")
    count, column = FIGURES[words]
    rows = list(csv.DictReader((tmp_path / "drawn" / "it.csv").open()))
    assert len(rows) == count
    assert all(np.isfinite(float(row[column])) for row in rows)


def test_other_samples_of_the_same_data_are_said(
    run: Run, checkpoints: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = load_checkpoint(checkpoints[0])
    seed = train_run(make_config(RUN | {"seed": 1}), tmp_path / "seed", Execution(workers=1))
    words = ("--layers", "none", "--samples", 50)
    run("eigs", *checkpoints, *words)
    assert "measured otherwise" not in capsys.readouterr().out
    run("eigs", checkpoints[0], seed, *words)
    assert "[2] was measured otherwise than [1] (on other samples" in capsys.readouterr().out
    run("eigs", *checkpoints, "--clients", "0,1")
    assert "measured otherwise" not in capsys.readouterr().out
    save_checkpoint(tmp_path / "split.pt", replace(own, config=own.config.model_copy(update={"delta": 5.0})))
    run("eigs", checkpoints[0], tmp_path / "split.pt", "--clients", "all")
    assert "on other samples, as its seed or split has them" in capsys.readouterr().out  # of each client
