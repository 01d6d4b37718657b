"""`density` and `surface` as a user calls them, against dense Hessians of a small MLP on digits."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest

import flatlab
from analysis.spectrum import eigs
from flatlab.errors import UsageError
from flatlab.measuring import surface
from tests.flatlab.dense_mlp import Dense, Run, assert_within


def test_density(run: Run, checkpoints: tuple[Path, Path], truth: Dense) -> None:
    result = run("density", checkpoints[0], "--dtype", "float64", "--depth", 60, "--probes", 8)
    exact = truth.eigenvalues()
    assert result["highest"] == pytest.approx(float(exact[0]), rel=1e-6)
    assert result["lowest"] == pytest.approx(float(exact[-1]), rel=1e-6)
    assert_within(result["trace"], truth.hessian.trace())
    width = 2 * result["sigma"]
    for name, count in {
        "negative": (exact < -width).sum(),
        "zero": (exact.abs() <= width).sum(),
        "positive": (exact > width).sum(),
    }.items():
        share = result["shares"][name]
        assert abs(share["value"] - float(count) / len(exact)) <= 5 * share["standard_error"] + 1e-3
    assert sum(share["value"] for share in result["shares"].values()) == pytest.approx(1)
    assert np.trapezoid(result["density"], result["grid"]) == pytest.approx(1, rel=1e-3)


def test_surface(run: Run, checkpoints: tuple[Path, Path], truth: Dense) -> None:
    line = run(
        "surface", checkpoints[0], "--line", "--along", "eigenvectors", "--dtype", "float64", "--extent", 1e-3,
        "--points", 3,
    )  # fmt: skip
    assert line["a"] == [-1e-3, 0, 1e-3]
    (before,), (at,), (after,) = line["losses"]
    assert at == pytest.approx(truth.loss)
    assert (before + after - 2 * at) / 1e-6 == pytest.approx(float(truth.eigenvalues()[0]), rel=1e-3)
    assert line["eigenvalues"][0]["value"] == pytest.approx(float(truth.eigenvalues()[0]), rel=1e-3)

    plane = run("surface", checkpoints[0], "--points", 5, "--extent", 0.5, "--dtype", "float64", "--seed", 3)
    assert plane["losses"][2][2] == pytest.approx(truth.loss)
    assert np.shape(plane["losses"]) == (5, 5)
    assert plane["b"] == [-0.5, -0.25, 0, 0.25, 0.5]
    other = run("surface", checkpoints[0], "--points", 5, "--extent", 0.5, "--dtype", "float64", "--seed", 4)
    assert other["losses"][0][0] != plane["losses"][0][0]


def test_a_surface_says_where_the_loss_is_not_finite(
    run: Run, checkpoints: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    plane = run("surface", checkpoints[0], "--points", 3, "--extent", 1e30, "--figure", "plane")
    assert sum(loss is None for line in plane["losses"] for loss in line) == 8
    said = " ".join(capsys.readouterr().out.split())
    assert f"lowest {plane['loss']:.4g} highest {plane['loss']:.4g} mean at the rim not finite" in said
    assert "points not finite 8" in said
    assert Path("plane.csv").exists()
    run("surface", checkpoints[0], "--line", "--points", 3, "--extent", 1e30, "--figure", "line")
    run("surface", checkpoints[0], "--points", 2, "--extent", 1e30, "--figure", "nothing")
    assert "There is no figure: no loss around the model is a finite number." in capsys.readouterr().out


def test_directions_that_did_not_converge_are_marked(
    run: Run, checkpoints: tuple[Path, Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("surface", checkpoints[0], "--line", "--along", "eigenvectors", "--points", 3)
    run(*words)
    assert "λ₁ ± residual: " in capsys.readouterr().out
    monkeypatch.setattr(surface, "eigs", partial(eigs, max_iter=1))
    run(*words, code=3)
    said = capsys.readouterr().out
    assert " !" in said.split("λ₁ ± residual: ")[1].splitlines()[0]
    assert "! not converged" in said


def test_a_summary_is_of_the_points_that_are_finite(checkpoints: tuple[Path, Path]) -> None:
    found = flatlab.surface(checkpoints[0], points=3, extent=1e30).summary()
    assert [row["where"] for row in found] == ["at the model", "lowest", "highest"]
    assert len({row["loss"] for row in found}) == 1
    with pytest.raises(UsageError, match="A seed is of random directions"):
        flatlab.surface(checkpoints[0], along="eigenvectors", seed=3)
