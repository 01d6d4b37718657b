"""Power iteration and Lanczos on matrices built from given eigenvalues, degenerate ones included."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from analysis.eigenpairs import Eigenpairs
from analysis.lanczos import lanczos
from analysis.operators import SymmetricOperator, hessian, matrix_operator
from analysis.power import power_iteration
from analysis.recurrence import extend
from analysis.vectors import orthogonalised

SPECTRA = {
    "decaying": [50.0 / (i + 1) for i in range(80)],
    "repeated": [5.0] * 4 + [1.0] * 20 + [-2.0] * 3,
    "zero": [0.0] * 30,
    "negative": [-1.0 - i**2 for i in range(30)],
    "identity": [3.0] * 20,
    "both signs": [4.0, -4.0] + [1.0] * 20,
    "rank one": [7.0] + [0.0] * 20,
    "single": [7.0],
}


def expected(values: list[float], k: int, which: str) -> np.ndarray:
    ascending = np.sort(values)
    k = min(k, len(values))
    ends: dict[str, np.ndarray] = {
        "largest": ascending[::-1][:k],
        "smallest": ascending[:k],
        "both": np.r_[ascending[::-1][: k - k // 2], ascending[: k // 2]],
        "magnitude": ascending[np.argsort(-abs(ascending), kind="stable")][:k],
    }
    return ends[which]


def check_pairs(operator: SymmetricOperator, pairs: Eigenpairs, tol: float) -> None:
    """What every result promises: orthonormal vectors, true residuals, an honest flag."""
    vectors = pairs.vectors.double()
    rounding = 50 * torch.finfo(operator.torch_dtype).eps
    torch.testing.assert_close(
        vectors.T @ vectors, torch.eye(vectors.shape[1], dtype=torch.float64), rtol=0, atol=rounding
    )
    residuals = (operator(pairs.vectors).double() - vectors * pairs.values).norm(dim=0)
    scale = torch.linalg.matrix_norm(operator(torch.eye(operator.size)).double(), ord=2).item()
    torch.testing.assert_close(residuals, pairs.residuals, rtol=1e-3, atol=rounding * scale)
    assert (pairs.residuals <= tol * pairs.values.abs())[pairs.converged].all()
    assert (pairs.residuals <= rounding * scale)[pairs.rounded].all()
    assert not (pairs.converged & pairs.rounded).any()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("which", ["largest", "smallest", "both", "magnitude"])
@pytest.mark.parametrize("name", SPECTRA)
def test_lanczos_finds_every_end_of_every_spectrum(name: str, which: Any, dtype: torch.dtype, make_matrix: Any) -> None:
    operator = matrix_operator(make_matrix(SPECTRA[name], dtype))
    for k in (1, 2, 5):
        pairs = lanczos(operator, k, which=which, tol=1e-4)
        assert pairs.finished
        check_pairs(operator, pairs, 1e-4)
        wanted = expected(SPECTRA[name], k, which)
        if which == "magnitude":  # of lambda and -lambda either may come first
            np.testing.assert_allclose(abs(pairs.values), abs(wanted), atol=1e-4 * max(map(abs, SPECTRA[name])))
        else:
            np.testing.assert_allclose(pairs.values, wanted, atol=1e-4 * max(map(abs, SPECTRA[name])))


@pytest.mark.parametrize("factor", [1e-12, 1e12])
@pytest.mark.parametrize("name", SPECTRA)
def test_a_search_in_float32_is_the_same_in_any_unit(name: str, factor: float, make_matrix: Any) -> None:
    """Random rows, which come in where the Krylov space has ended, are as long whatever the matrix is measured in."""
    matrix = make_matrix(SPECTRA[name])
    for k in (1, 4):
        pairs = lanczos(matrix_operator((factor * matrix).float()), k, tol=1e-4)
        values = factor * expected(SPECTRA[name], k, "largest")
        assert pairs.finished
        np.testing.assert_allclose(pairs.values, values, rtol=1e-4, atol=1e-4 * factor * np.abs(SPECTRA[name]).max())


@pytest.mark.parametrize("name", sorted(set(SPECTRA) - {"both signs"}))
def test_power_iteration_finds_the_largest_in_magnitude(name: str, make_matrix: Any) -> None:
    operator = matrix_operator(make_matrix(SPECTRA[name], torch.float32))
    for k in (1, 3):
        pairs = power_iteration(operator, k, tol=1e-3, max_iter=500)
        assert pairs.finished
        check_pairs(operator, pairs, 1e-3)
        wanted = expected(SPECTRA[name], k, "magnitude")
        np.testing.assert_allclose(pairs.values, wanted, atol=1e-3 * max(map(abs, SPECTRA[name])))


@given(
    values=st.lists(st.floats(-10, 10, width=32), min_size=1, max_size=25),
    k=st.integers(1, 6),
    which=st.sampled_from(["largest", "smallest", "both", "magnitude"]),
    seed=st.integers(0, 100),
)
@settings(max_examples=60, deadline=None)
def test_lanczos_on_any_spectrum(make_matrix: Any, values: list[float], k: int, which: Any, seed: int) -> None:
    operator = matrix_operator(make_matrix(values, seed=seed))
    pairs = lanczos(operator, k, which=which, tol=1e-8, seed=seed)
    assert pairs.finished
    assert pairs.products == operator.products
    check_pairs(operator, pairs, 1e-8)
    scale = max(map(abs, values))
    np.testing.assert_allclose(abs(pairs.values), abs(expected(values, k, which)), atol=1e-7 * scale + 1e-12)


@given(
    values=st.lists(st.integers(-2, 2), min_size=1, max_size=12),
    k=st.integers(1, 8),
    which=st.sampled_from(["largest", "smallest", "both"]),
    dtype=st.sampled_from([torch.float64, torch.float32]),
    seed=st.integers(0, 100),
)
@settings(max_examples=60, deadline=None)
def test_lanczos_counts_every_copy(
    make_matrix: Any, values: list[int], k: int, which: Any, dtype: torch.dtype, seed: int
) -> None:
    """Few distinct eigenvalues: the Krylov space ends soon and holds one copy of each per start vector."""
    exact = [float(value) for value in values]
    pairs = lanczos(matrix_operator(make_matrix(exact, dtype, seed=seed)), k, which=which, tol=1e-4, seed=seed)
    assert pairs.finished
    np.testing.assert_allclose(pairs.values, expected(exact, k, which), atol=1e-4)


@given(seed=st.integers(0, 200), tol=st.sampled_from([1e-1, 1e-2, 1e-3]))
@settings(max_examples=40, deadline=None)
def test_bounds_hold_against_the_exact_spectrum(make_matrix: Any, seed: int, tol: float) -> None:
    generator = np.random.default_rng(seed)
    exact = np.sort(generator.standard_cauchy(60).clip(-50, 50))[::-1].copy()
    pairs = lanczos(matrix_operator(make_matrix(exact, seed=seed)), 3, tol=tol, seed=seed)
    for value, residual, sharper in zip(pairs.values, pairs.residuals, pairs.quadratic, strict=True):
        distance = abs(exact - value.item()).min()
        assert distance <= residual + 1e-12
        assert distance <= sharper + 1e-12
        assert sharper <= residual + 1e-12


@pytest.mark.parametrize(
    "which",
    [*("largest", "smallest"), *(pytest.param(which, marks=pytest.mark.long) for which in ("both", "magnitude"))],
)
def test_the_sharper_bound_holds_beside_eigenvalues_that_look_like_one(make_matrix: Any, which: Any) -> None:
    """Closer than the residual, so that Ritz values do not show how many there are."""
    sharp = 0
    for seed in range(40):
        generator = np.random.default_rng(seed)
        close = [
            10 + generator.uniform(0, 0.02, 3),
            7 + generator.uniform(0, 0.002, 2),
            -10 - generator.uniform(0, 0.02, 3),
        ]
        exact = np.concatenate([*close, np.linspace(5, -5, 150)])
        pairs = lanczos(matrix_operator(make_matrix(exact, seed=seed)), 4, which=which, tol=1e-2, seed=seed)
        assert pairs.converged.all()
        distances = abs(exact - pairs.values.numpy()[:, None]).min(axis=1)
        assert (distances <= pairs.quadratic.numpy() + 1e-12).all()
        sharp += int((pairs.quadratic < 0.3 * pairs.residuals).sum())
    assert sharp > 20 or which in ("both", "magnitude")  # whose borders lie beyond the cluster


def test_for_one_pair_no_gap_is_claimed(make_matrix: Any) -> None:
    """What its search excludes lies beyond, not beside it."""
    for seed in range(20):
        exact = np.concatenate([[10.0, 9.995], np.linspace(5, -5, 150)])
        pairs = lanczos(matrix_operator(make_matrix(exact, seed=seed)), tol=1e-2, seed=seed)
        assert (pairs.quadratic == pairs.residuals).all()


def test_running_out_of_products_is_a_result_that_says_so(make_matrix: Any) -> None:
    operator = matrix_operator(make_matrix([-10.0 + i / 10 for i in range(200)]))
    for pairs in (lanczos(operator, 2, tol=1e-10, max_iter=6), power_iteration(operator, 2, tol=1e-10, max_iter=6)):
        assert not pairs.converged.any()
        assert (pairs.relative_residuals > 1e-10).all()
        check_pairs(operator, pairs, 1e-10)


def test_power_iteration_says_that_opposite_eigenvalues_do_not_settle(make_matrix: Any) -> None:
    operator = matrix_operator(make_matrix(SPECTRA["both signs"]))
    assert not power_iteration(operator, 1, max_iter=50).converged.any()


@pytest.mark.parametrize("depth", [1, 3, 8])
def test_lanczos_identity(make_matrix: Any, depth: int) -> None:
    """A Q = Q T + w e^T to rounding, with Q orthonormal and T tridiagonal."""
    A = make_matrix(SPECTRA["decaying"])
    generator = torch.Generator().manual_seed(0)
    basis, T = torch.zeros(depth + 1, 80, dtype=torch.float64), torch.zeros(depth, depth, dtype=torch.float64)
    w: Tensor = torch.randn(1, 80, dtype=torch.float64, generator=generator)
    for m in range(depth):
        extend(basis, m, w, 1.0, generator)
        w, T[: m + 1, m : m + 1] = orthogonalised(basis[m : m + 1] @ A, basis[: m + 1])
    Q = basis[:depth]
    T = T + T.triu(1).T
    remainder = Q @ A - T @ Q
    torch.testing.assert_close(remainder[-1], w[0], atol=1e-12, rtol=0)
    assert remainder[:-1].abs().max() < 1e-12 if depth > 1 else True
    assert T.triu(2).abs().max() < 1e-12
    torch.testing.assert_close(Q @ Q.T, torch.eye(depth, dtype=torch.float64), atol=1e-13, rtol=0)


def test_restarts_keep_what_was_found(make_matrix: Any) -> None:
    exact = [10.0 / (1 + i / 10) for i in range(300)]
    operator = matrix_operator(make_matrix(exact))
    short = lanczos(operator, 4, tol=1e-6, max_basis=12)
    assert short.converged.all()
    np.testing.assert_allclose(short.values, exact[:4], atol=1e-6)
    assert short.products > 12


def test_a_warm_start_saves_products(make_matrix: Any) -> None:
    matrix = make_matrix([20.0 / (1 + i / 4) for i in range(200)])
    noise = torch.randn(200, 200, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 1e-3
    cold = lanczos(matrix_operator(matrix), 2)
    nearby = matrix_operator(matrix + noise + noise.T)
    assert lanczos(nearby, 2, start=cold.vectors).products < lanczos(nearby, 2).products  # as much noise as start
    steps = power_iteration(nearby, 1, start=cold.vectors[:, :1]).products
    assert steps < power_iteration(nearby, 1).products - 5


def test_a_hessian_with_repeated_eigenvalues(make_case: Any, dense_hessian: Any) -> None:
    """Squared error makes every eigenvalue of the last layer's block as many times as there are outputs."""
    case = make_case("mlp", loss="squared")
    problem = case.problem(parameters=["5.weight", "5.bias"])
    exact = torch.linalg.eigvalsh(dense_hessian(case)[-problem.size :, -problem.size :]).flip(0)
    assert exact[0] - exact[2] < 1e-12
    torch.testing.assert_close(lanczos(hessian(problem), 6).values, exact[:6], rtol=1e-3, atol=1e-10)


def test_the_same_seed_gives_the_same_numbers(make_matrix: Any) -> None:
    operator = matrix_operator(make_matrix(SPECTRA["decaying"]))
    once, twice, other = (lanczos(operator, 2, seed=seed) for seed in (0, 0, 1))
    assert (once.vectors == twice.vectors).all()
    assert (once.vectors != other.vectors).any()


def test_lanczos_finds_every_copy_of_a_repeated_eigenvalue(make_matrix: Any) -> None:
    pairs = lanczos(matrix_operator(make_matrix([0.0, 0.0, 0.0, 1.0, 0.0, 1.0, 1.0], seed=0)), 3, tol=1e-8, seed=0)
    np.testing.assert_allclose(pairs.values, [1.0, 1.0, 1.0], atol=1e-7)
