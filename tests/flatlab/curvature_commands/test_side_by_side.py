"""Every command on two checkpoints: shown side by side, drawn, and written as rows."""

import csv
from pathlib import Path

import numpy as np
import pytest

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
