"""Stochastic estimates against the exact values, with their standard errors held to account."""

import math
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from analysis.density import SpectralDensity, spectral_density
from analysis.errors import MeasurementError
from analysis.operators import hessian, matrix_operator
from analysis.trace import hutch_plus_plus, hutchinson

DECAYING = [30.0 / (1 + i) ** 2 - 0.05 for i in range(120)]


def test_estimates_lie_within_their_standard_errors(make_matrix: Any) -> None:
    """Over 60 seeds, z-scores of trace, norm and diagonal have mean square near one: neither boastful nor timid."""
    matrix = make_matrix(DECAYING)
    scores: dict[str, list[float]] = {"trace": [], "frobenius": [], "diagonal": [], "group": []}
    for seed in range(60):
        moments = hutchinson(
            matrix_operator(matrix), tol=0, max_probes=40, seed=seed, groups={"some": torch.arange(10, 40)}
        )
        truth = {"trace": matrix.trace(), "frobenius": matrix.norm(), "group": matrix.diagonal()[10:40].sum()}
        estimates = {"trace": moments.trace, "frobenius": moments.frobenius, "group": moments.groups["some"]}
        for name, estimate in estimates.items():
            scores[name].append((estimate.value - truth[name].item()) / estimate.standard_error)
        scores["diagonal"] += ((moments.diagonal - matrix.diagonal()) / moments.diagonal_error).tolist()
    for name, values in scores.items():
        assert 0.6 < np.sqrt(np.mean(np.square(values))) < 1.6, name


def test_hutchinson_stops_on_its_standard_error_and_says_when_it_could_not(make_matrix: Any) -> None:
    operator = matrix_operator(make_matrix(DECAYING))
    loose, tight = (hutchinson(operator, tol=tol, max_probes=3000) for tol in (0.2, 0.05))
    assert loose.converged
    assert tight.converged
    assert 10 <= loose.products < tight.products < 3000
    assert tight.trace.standard_error <= 0.05 * abs(tight.trace.value)
    assert not hutchinson(operator, tol=1e-4, max_probes=12).converged


def test_a_diagonal_matrix_is_exact_at_once() -> None:
    matrix = torch.diag(torch.arange(5.0, dtype=torch.float64))
    moments = hutchinson(matrix_operator(matrix))
    assert moments.products == 5
    assert moments.trace.value == 10
    assert moments.trace.standard_error == 0
    assert moments.diagonal.tolist() == [0, 1, 2, 3, 4]
    assert hutchinson(matrix_operator(torch.zeros(3, 3))).converged


@given(seed=st.integers(0, 50))
@settings(max_examples=15, deadline=None)
def test_hutch_plus_plus_beats_hutchinson_on_a_decaying_spectrum(make_matrix: Any, seed: int) -> None:
    matrix = make_matrix(DECAYING, seed=seed)
    truth = matrix.trace().item()
    plain = hutchinson(matrix_operator(matrix), tol=0, max_probes=60, seed=seed)
    sketched = hutch_plus_plus(matrix_operator(matrix), 60, seed=seed)
    assert abs(sketched.value - truth) < 6 * sketched.standard_error + 1e-9
    assert sketched.standard_error < plain.trace.standard_error / 3


def test_hutch_plus_plus_is_exact_where_the_sketch_spans_everything(make_matrix: Any) -> None:
    matrix = make_matrix(DECAYING[:10])
    assert hutch_plus_plus(matrix_operator(matrix), 30).value == pytest.approx(matrix.trace().item(), rel=1e-12)


@pytest.mark.parametrize("factor", [1e-30, 1e-12, 1e12])
@pytest.mark.parametrize("values", [DECAYING[:10], [3.0] * 10])
def test_a_density_is_the_same_curve_in_any_unit(values: list[float], factor: float, make_matrix: Any) -> None:
    matrix = make_matrix(values)
    one, other = (spectral_density(matrix_operator(c * matrix), depth=10) for c in (1.0, factor))
    torch.testing.assert_close(other.grid, factor * one.grid, rtol=1e-9, atol=1e-12 * factor)
    torch.testing.assert_close(factor * other.density, one.density, rtol=1e-6, atol=1e-6)

    def share(density: SpectralDensity, below: float) -> float:
        return density.mean_of(lambda x: (x < below).double())

    for below in (0.5, 5.0):
        assert share(other, factor * below) == pytest.approx(share(one, below))


@pytest.mark.parametrize("factor", [1e-12, 1e12])
def test_hutch_plus_plus_of_a_matrix_of_low_rank_is_the_same_in_any_unit(factor: float, make_matrix: Any) -> None:
    """Beyond its rank the sketch is filled up with signs, whose length has nothing to do with the matrix."""
    matrix = (factor * make_matrix([7.0] + [0.0] * 20)).float()
    assert hutch_plus_plus(matrix_operator(matrix), 30).value == pytest.approx(7 * factor, rel=1e-5)


def test_trace_of_a_network(make_case: Any, dense_hessian: Any) -> None:
    case = make_case("cnn", phi="gelu")
    exact = dense_hessian(case)
    moments = hutchinson(hessian(case.problem()), tol=0.03, max_probes=len(exact) - 1)  # of more it would be exact
    assert moments.trace.standard_error > 0
    assert moments.trace.value == pytest.approx(exact.trace().item(), abs=5 * moments.trace.standard_error)
    assert moments.frobenius.value == pytest.approx(exact.norm().item(), abs=5 * moments.frobenius.standard_error)


def power_of(x: Tensor, degree: int, scale: float) -> Tensor:
    return (x / scale) ** degree


@given(
    values=st.lists(st.floats(-10, 10, width=16), min_size=1, max_size=30),
    depth=st.integers(1, 8),
    seed=st.integers(0, 20),
)
@settings(max_examples=40, deadline=None)
def test_quadrature_is_exact_for_low_polynomials(make_matrix: Any, values: Any, depth: int, seed: int) -> None:
    """With one probe z, sum_i tau_i theta_i^q = z^T A^q z / z^T z up to degree 2 m - 1."""
    matrix = make_matrix(values, seed=seed)
    density = spectral_density(matrix_operator(matrix), depth=depth, probes=1, seed=seed)
    z = torch.randn(1, len(values), dtype=torch.float64, generator=torch.Generator().manual_seed(seed))[0]
    z = z / z.norm()
    scale = max(1.0, *map(abs, values))
    image = z
    for degree in range(2 * depth):
        power = partial(power_of, degree=degree, scale=scale)
        assert density.mean_of(power) == pytest.approx((z @ image).item(), abs=1e-9)
        image = matrix @ image / scale


def test_density_of_a_known_spectrum(make_matrix: Any) -> None:
    """Two clusters and an outlier: mass where the eigenvalues are, in proportion, and one in all."""
    matrix = make_matrix([0.0] * 150 + [2.0] * 49 + [10.0])
    density = spectral_density(matrix_operator(matrix), depth=20, probes=40)
    step = (density.grid[1] - density.grid[0]).item()
    assert (density.density.sum() * step).item() == pytest.approx(1, abs=1e-3)
    near_two = (density.grid > 1.5) & (density.grid < 2.5)
    assert (density.density[near_two].sum() * step).item() == pytest.approx(49 / 200, abs=0.03)
    near_ten = density.grid > 9
    assert (density.density[near_ten].sum() * step).item() == pytest.approx(1 / 200, abs=0.004)
    assert density.mean_of(lambda x: x) == pytest.approx(matrix.trace().item() / 200, rel=0.15)
    at_peak = density.density.argmax()
    assert density.standard_error[at_peak] < 0.1 * density.density[at_peak]


def test_density_holds_no_copies_of_found_eigenvalues(make_matrix: Any) -> None:
    """Without full reorthogonalisation deep Lanczos shows the outlier several times over."""
    matrix = make_matrix([100.0] + [1.0 + i / 500 for i in range(99)], torch.float32)
    density = spectral_density(matrix_operator(matrix), depth=60, probes=3)
    for nodes in density.nodes:
        assert (nodes > 50).sum() == 1
    assert density.products == 180


def test_density_of_a_constant_matrix_and_of_one_parameter() -> None:
    for matrix in (3.0 * torch.eye(20, dtype=torch.float64), torch.tensor([[2.0]]), torch.zeros(4, 4)):
        density = spectral_density(matrix_operator(matrix), probes=2)
        assert density.density.isfinite().all()
        assert density.mean_of(lambda x: x) == pytest.approx(matrix.trace().item() / len(matrix))


@pytest.mark.parametrize("size", [1, 3, 20])
def test_a_small_matrix_is_worked_through_whole(size: int) -> None:
    generator = torch.Generator().manual_seed(size)
    a = torch.randn(size, size, generator=generator, dtype=torch.float64)
    a = a + a.T
    moments = hutchinson(matrix_operator(a), groups={"first": torch.tensor([0])})
    assert moments.trace.value == pytest.approx(a.trace().item())
    assert moments.frobenius.value == pytest.approx(torch.linalg.matrix_norm(a).item())
    assert moments.groups["first"].value == pytest.approx(a[0, 0].item())
    assert (moments.trace.standard_error, moments.products, moments.converged) == (0.0, size, True)


@pytest.mark.long
@pytest.mark.parametrize("relative_spread", [0.05, 0.1, 0.2])
def test_the_error_of_a_trace_covers_as_often_as_it_says(relative_spread: float) -> None:
    """Of 400 searches that stop by themselves, 95 % have the trace within 1.96 standard errors (give or take 1 %)."""
    p = 450  # more than the products that may be made: of a smaller matrix what probes do not settle is exact
    off = relative_spread * p / math.sqrt(2 * p * (p - 1))  # z^T A z has the variance 2 p (p - 1) off^2
    signs = torch.sign(torch.randn(p, p, generator=torch.Generator().manual_seed(0), dtype=torch.float64)).triu(1)
    matrix = off * (signs + signs.T) + torch.eye(p, dtype=torch.float64)
    covered = 0
    for seed in range(400):
        trace = hutchinson(matrix_operator(matrix), tol=0.02, seed=seed).trace
        covered += abs(trace.value - p) <= 1.96 * trace.standard_error
    assert 0.92 <= covered / 400 <= 0.98


def test_hutch_plus_plus_needs_two_vectors_of_each_kind() -> None:
    for products in (0, 1, 2, 5):
        with pytest.raises(MeasurementError, match="at least 6"):
            hutch_plus_plus(matrix_operator(torch.eye(3)), products)


@given(st.floats(-4, 1))
@settings(max_examples=20, deadline=None)
def test_a_density_integrates_to_one_whatever_its_width(log_sigma: float) -> None:
    values = torch.linspace(-1, 3, 30, dtype=torch.float64)
    density = spectral_density(matrix_operator(values.diag()), depth=30, probes=2, sigma=10**log_sigma, points=50)
    assert torch.trapezoid(density.density, density.grid).item() == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("sigma", [0.0, -1.0, 1e-9, math.nan, math.inf])
def test_a_width_that_cannot_be_drawn_is_refused(sigma: float) -> None:
    with pytest.raises(MeasurementError, match="sigma"):
        spectral_density(matrix_operator(torch.linspace(-1, 3, 30).double().diag()), depth=10, sigma=sigma)


@pytest.mark.parametrize(("size", "most", "products"), [(31, 400, 62), (31, 31, 31), (31, 50, 50), (31, 30, 30)])
def test_a_small_matrix_that_probes_do_not_settle_is_worked_through(size: int, most: int, products: int) -> None:
    """Within the products that may be made."""
    matrix = torch.randn(size, size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    operator = matrix_operator(matrix + matrix.T)
    moments = hutchinson(operator, tol=1e-9, max_probes=most)
    assert moments.products == operator.products == products
    assert moments.converged == (size <= most)
    if size <= most:
        assert moments.trace.value == pytest.approx(2 * float(matrix.trace()))
        assert moments.trace.standard_error == 0
    exact = hutch_plus_plus(matrix_operator(matrix + matrix.T), most)
    assert (exact.standard_error == 0) == (size <= most)
