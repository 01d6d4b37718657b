"""`trace` as a user calls it, against dense Hessians of a small MLP on digits."""

from pathlib import Path
from typing import Any

import pytest

from flatlab.cli.trace import print_flatness
from flatlab.errors import NOT_CONVERGED
from tests.flatlab.dense_mlp import Dense, Run, assert_within, tops


def test_trace_by_hutch_plus_plus(run: Run, checkpoints: tuple[Path, Path], truth: Dense) -> None:
    words = ("trace", checkpoints[0], "--dtype", "float64", "--estimator", "Hutch++", "--max-probes", 300)
    result = run(*words)
    assert_within(result["trace"], truth.hessian.trace())
    assert result["settings"]["estimator"] == "hutch++"
    assert (result["frobenius"], result["layers"], result["hvps"]) == (None, [], 300)


def test_trace(run: Run, checkpoints: tuple[Path, Path], truth: Dense) -> None:
    result = run("trace", checkpoints[0], "--dtype", "float64", "--tol", 0.05, "--max-probes", 2000)
    assert result["converged"]
    assert result["trace"]["standard_error"] <= 0.05 * result["trace"]["value"]
    assert_within(result["trace"], truth.hessian.trace())
    assert_within(result["frobenius"], truth.hessian.norm())
    for layer in result["layers"]:
        assert_within(layer["trace"], truth.block(layer["name"]).trace())
    short = run("trace", checkpoints[0], "--tol", 1e-4, "--max-probes", 12, code=NOT_CONVERGED)
    assert (short["hvps"], short["converged"]) == (12 + 1, False)  # one of them in float64


@pytest.mark.parametrize(
    ("words", "advice"),
    [
        (("--max-probes", 12, "--tol", 0.03), "above 0.03 of the trace; raise --max-probes, or --tol."),
        (("--max-probes", 6, "--estimator", "hutch++"), "above 0.02 of the trace; raise --max-probes."),
        (("--max-probes", 12, "--flatness"), "above 0.02 of the trace; raise --max-probes, or --tol."),
    ],
)
def test_a_trace_that_is_not_exact_enough_is_marked_and_ends_with_its_exit_code(
    words: tuple[object, ...],
    advice: str,
    run: Run,
    checkpoints: tuple[Path, Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    run("trace", checkpoints[0], *words, code=NOT_CONVERGED)
    said = capsys.readouterr().out
    marked = [line for line in said.splitlines() if line.rstrip().endswith(" !")]
    assert [line.split()[0] for line in marked] == ["trace" if "--flatness" in words else "network"]
    assert f"! not converged: the standard error is {advice}" in said
    assert run("eigs", checkpoints[0], "--layers", "none")


def test_an_eigenvalue_exact_to_rounding_is_marked_as_by_eigs(capsys: pytest.CaptureFixture[str]) -> None:
    value = {"value": 2.0, "residual": 0.01, "converged": False, "rounded": True}
    print_flatness([flatness_of(value)])
    said = capsys.readouterr().out
    assert "2 ± 1e-02 ~" in said
    assert "~ exact to rounding only, which is above the tolerance here; measure in float64." in said
    assert "!" not in said


def flatness_of(value: dict[str, Any]) -> dict[str, Any]:
    """A saved result of a network without layers whose top eigenvalue is `value`."""
    estimate = {"value": 3.0, "standard_error": 0.01, "converged": True}
    sharpness = {"value": 0.1, "radius": 0.5, "confirmed": True}
    return {
        "model": "mine:net",
        "weights": "",
        "seconds": 1.0,
        "data": {"dataset": "mine:data", "split": "", "samples": 5},
        "loss_function": "mse",
        "settings": {"estimator": "hutchinson", "tol": 0.02, "dtype": "float32"},
        "eigenvalues": [value],
        "spread": None,
        **dict.fromkeys(("trace", "frobenius"), estimate),
        **dict.fromkeys(("sam_sharpness", "adaptive_sharpness"), sharpness),
        "layers": [],
    }


def test_flatness_measures(run: Run, checkpoints: tuple[Path, Path], truth: Dense) -> None:
    words = ("trace", checkpoints[0], "--flatness", "--dtype", "float64", "--max-probes", 60)
    result = run(*words, code=NOT_CONVERGED)  # four percent
    exact = truth.eigenvalues()
    assert tops(result) == pytest.approx(exact[:5].tolist(), rel=1e-3)
    assert result["spread"] == pytest.approx(float(exact[0] / exact[4]), rel=1e-2)
    assert_within(result["trace"], truth.hessian.trace())
    assert_within(result["frobenius"], truth.hessian.norm())
    g, theta = truth.gradient, truth.theta
    step = 0.05 * g / g.norm()
    assert result["sam_sharpness"]["value"] == pytest.approx(float(truth.loss_at(theta + step)) - truth.loss)
    step = 0.5 * theta**2 * g / (theta * g).norm()
    assert result["adaptive_sharpness"]["value"] == pytest.approx(float(truth.loss_at(theta + step)) - truth.loss)
    for layer in result["layers"]:
        weight = f"{layer['name']}.weight"
        norm2 = float(truth.parameters[weight].square().sum())
        assert layer["by_eigenvalue"] == pytest.approx(norm2 * float(truth.eigenvalues(weight)[0]), rel=1e-3)
        assert_within(layer["trace"], truth.block(weight).trace())
        assert layer["by_trace"] == pytest.approx(norm2 * layer["trace"]["value"])
