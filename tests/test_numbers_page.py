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


def top(run: dict[str, Any], eta: float, steps: int) -> float:
    report = run["flatlab"].eigs(run["descend"](eta, steps), "mse", (run["x"], run["y"]), layers="none")
    return float(report.eigenvalues[0].value)


@pytest.mark.parametrize("eta", [0.6, 0.8, 1.0])
def test_full_batch_descent_settles_at_the_edge_of_stability(eta: float, run: dict[str, Any]) -> None:
    """Cohen et al. 2021: the top eigenvalue hovers at 2 / eta; where exactly, rounding decides."""
    assert top(run, eta, 1500) == pytest.approx(2 / eta, rel=0.1)


@pytest.mark.parametrize(
    ("eta", "steps", "said"), [(1.0, 0, "All three began at {:.2f}."), (0.1, 1500, "the same steps end at {:.2f},")]
)
def test_below_the_edge_nothing_holds_it(eta: float, steps: int, said: str, run: dict[str, Any]) -> None:
    assert said.format(top(run, eta, steps)) in PAGE


def test_softmax_regression_at_zero_has_its_eigenvalues_nine_times(run: dict[str, Any]) -> None:
    found, formula = run["report"].eigenvalues, run["formula"]
    assert all(one.converged for one in found)
    assert [one.value for one in found[:9]] == pytest.approx([float(formula[0])] * 9, rel=1e-6)
    assert [one.value for one in found[9:]] == pytest.approx([float(formula[1])] * 9, rel=1e-6)


def test_the_page_shows_what_it_prints(run: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    exec(CLOSED, run)
    for line in capsys.readouterr().out.splitlines():
        assert line in PAGE
