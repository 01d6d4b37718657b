"""Subsets, mini-batches and clients against dense Hessians of their own samples."""

from typing import Any

import pytest
import torch
from torch import Tensor

from analysis.errors import MeasurementError
from analysis.operators import hessian
from analysis.problem import Problem, make_problem
from analysis.subsets import batch_spectra, client_spectra, sampling_spread


def top(problem: Problem) -> float:
    operator = hessian(problem)
    return float(torch.linalg.eigvalsh(operator(torch.eye(operator.size, dtype=torch.float64)))[-1])


def data(case: Any, where: Any) -> tuple[Tensor, Tensor]:
    return case.inputs[where], case.targets[where]


def test_parts_are_disjoint_and_make_the_whole(make_case: Any) -> None:
    case = make_case("cnn")
    uneven = [data(case, slice(0, 1)), data(case, slice(1, 5)), data(case, slice(5, 7))]
    problem = case.problem(data=uneven)
    for index in range(3):
        expected = case.problem(data=data(case, slice(index, None, 3)))
        part = problem.part(index, 3)
        assert part.samples == expected.samples
        v = torch.ones(problem.size, dtype=torch.float64)
        torch.testing.assert_close(hessian(part)(v), hessian(expected)(v))


def test_spread_over_disjoint_subsets(make_case: Any) -> None:
    case = make_case("mlp")
    problem = case.problem()
    spread = sampling_spread(problem, 3, tol=1e-8)
    exact = [top(case.problem(data=data(case, slice(i, None, 3)))) for i in range(3)]
    assert [value.value for value in spread.values] == pytest.approx(exact, rel=1e-6)
    assert spread.samples == 2
    shares, tops = torch.tensor([3, 2, 2]).double() / 7, torch.tensor(exact, dtype=torch.float64)  # of 7 samples
    assert spread.mean == pytest.approx((shares @ tops).item())
    squares = 1.5 * (tops - spread.mean).square()
    assert spread.deviation == pytest.approx((shares @ squares).sqrt().item())
    assert spread.standard_error == pytest.approx((shares.square() @ squares).sqrt().item())
    assert sampling_spread(case.problem(data=data(case, [0] * 7)), 3).deviation == pytest.approx(0, abs=1e-9)
    with pytest.raises(MeasurementError, match="8 parts"):
        sampling_spread(problem, 8)


def test_the_spread_of_a_sum_is_that_of_all_samples(make_case: Any) -> None:
    """7 samples in parts of 4 and 3: each part's sum is scaled to 7, and the larger part weighs more."""
    case = make_case("mlp")
    whole = make_problem(case.model, sum_of_squares, data(case, slice(None)), reduction="sum", dtype=torch.float64)
    spread = sampling_spread(whole, 2, tol=1e-8)
    tops = [top(whole.part(index, 2)) * 7 / n for index, n in enumerate((4, 3))]
    assert [value.value for value in spread.values] == pytest.approx(tops, rel=1e-6)
    assert spread.mean == pytest.approx((4 * tops[0] + 3 * tops[1]) / 7)
    off = [n / 7 * (value - spread.mean) for n, value in zip((4, 3), tops, strict=True)]
    assert spread.standard_error == pytest.approx((2 * sum(x**2 for x in off)) ** 0.5)


def sum_of_squares(outputs: Tensor, targets: Tensor) -> Tensor:
    return outputs.square().sum()


def test_spectra_of_mini_batches(make_case: Any) -> None:
    case = make_case("mlp", phi="tanh")
    problem = case.problem(data=[data(case, slice(0, 3)), data(case, slice(3, 7))])
    spectra = batch_spectra(problem, 2, 2, tol=1e-8)
    assert spectra.values.shape == (3, 2)
    for index, values in enumerate(spectra.values):
        assert values[0].item() == pytest.approx(top(case.problem(data=data(case, slice(2 * index, 2 * index + 2)))))
    assert spectra.converged.all()
    with pytest.raises(MeasurementError, match="between 1 and the 7"):
        batch_spectra(problem, 8)


@pytest.mark.parametrize("architecture", ["mlp", "residual", "tied"])
def test_statement_f(make_case: Any, architecture: str) -> None:
    case = make_case(architecture, phi="tanh", seed=2)
    problem = case.problem()
    problems = {"a": problem.on(data(case, slice(0, 1))), "b": problem.on(data(case, slice(1, 7)))}
    by_samples = client_spectra(problems, tol=1e-8)
    assert by_samples.whole[0].value == pytest.approx(top(problem), rel=1e-6)
    assert by_samples.weights == pytest.approx({"a": 1 / 7, "b": 6 / 7})
    assert by_samples.holds
    assert by_samples.mean == pytest.approx(top(problems["a"]) / 7 + top(problems["b"]) * 6 / 7, rel=1e-6)
    alone = client_spectra(problems, {"a": 1, "b": 0}, tol=1e-8)
    assert alone.slack == pytest.approx(0, abs=1e-6)
    assert alone.holds


def test_statement_f_would_fail_on_wrong_numbers(make_case: Any) -> None:
    from dataclasses import replace

    problem = make_case("mlp").problem()
    spectra = client_spectra({"a": problem})
    assert replace(spectra, mean=spectra.mean * 0.9).holds is False


def test_statement_f_is_not_told_where_a_search_excluded_nothing(make_case: Any) -> None:
    """Stopped early, a client's top is too low, or that of all of them."""
    from dataclasses import replace

    case = make_case("residual", phi="tanh", seed=2)
    problems = {"a": case.problem().on(data(case, slice(0, 4))), "b": case.problem().on(data(case, slice(4, 7)))}
    sound, stopped = client_spectra(problems), client_spectra(problems, max_iter=1)
    assert sound.holds is True
    assert stopped.mean < sound.mean
    assert replace(stopped, whole=sound.whole).holds is None
    assert replace(sound, whole=stopped.whole).holds is None


def test_bad_requests(make_case: Any) -> None:
    problem = make_case("mlp").problem()
    with pytest.raises(MeasurementError, match="No clients"):
        client_spectra({})
    for weights in ({"a": -1.0}, {"b": 1.0}, {"a": 0.0}):
        with pytest.raises(MeasurementError, match="weight"):
            client_spectra({"a": problem}, weights)
