"""Checks by numbers that nobody here made: gradient descent at the edge of stability, and a Hessian in closed form."""

import re
from pathlib import Path
from typing import Any

import pytest

PAGE = (Path(__file__).parent.parent / "docs" / "questions" / "numbers.md").read_text()
EDGE, CLOSED = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)


@pytest.fixture(scope="module")
def run() -> dict[str, Any]:
    """What the page's two blocks define."""
    names: dict[str, Any] = {"__name__": "page"}
    exec(EDGE.partition("\nfor eta in")[0], names)  # our own document
    exec(CLOSED, names)
    return names


@pytest.mark.parametrize("eta", [0.6, 1.0])
def test_full_batch_descent_settles_at_the_edge_of_stability(eta: float, run: dict[str, Any]) -> None:
    """Cohen et al. 2021: the top eigenvalue hovers at 2 / eta."""
    report = run["flatlab"].eigs(run["descend"](eta, 1500), "mse", (run["x"], run["y"]), layers="none")
    assert report.eigenvalues[0].value == pytest.approx(2 / eta, rel=0.1)


def test_below_the_edge_nothing_holds_it(run: dict[str, Any]) -> None:
    report = run["flatlab"].eigs(run["descend"](0.1, 750), "mse", (run["x"], run["y"]), layers="none")
    assert 1 < report.eigenvalues[0].value < 4 < 2 / 0.1


def test_softmax_regression_at_zero_has_its_eigenvalues_nine_times(run: dict[str, Any]) -> None:
    found, formula = run["report"].eigenvalues, run["formula"]
    assert all(one.converged for one in found)
    for one in found[:9]:
        assert one.value == pytest.approx(float(formula[0]), rel=1e-6)
    assert found[9].value == pytest.approx(float(formula[1]), rel=1e-6)


def test_the_page_shows_what_it_prints(run: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    exec(CLOSED, run)
    for line in capsys.readouterr().out.splitlines():
        assert line in PAGE
