"""The lower end of spectra that are zero there, or nearly: cheap where zero is enough, and nothing lower is missed."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from analysis.eigenpairs import Eigenpairs, drive
from analysis.lanczos import lanczos, lanczos_steps
from analysis.operators import matrix_operator

SIZE = 150


def smallest(matrix: Tensor, k: int, tol: float, which: Any = "smallest", seed: int = 0) -> Eigenpairs:
    like = matrix.new_empty(0)
    steps = lanczos_steps(len(matrix), like, k, which, tol, 1000, seed=seed, vanishing=True)
    return drive(steps, lambda rows: rows @ matrix)


SPECTRA = {
    "zeros below": torch.cat([torch.zeros(100), torch.logspace(-8, 1, 50)]),
    "decay to zero": torch.logspace(-9, 1, SIZE),
    "one below": torch.cat([torch.tensor([-0.5]), torch.zeros(99), torch.linspace(0.1, 10, 50)]),
    "a hair below": torch.cat([torch.tensor([-1e-6]), torch.zeros(99), torch.linspace(0.1, 10, 50)]),
    "both signs": torch.linspace(-3, 10, SIZE),
    "twice below": torch.cat([torch.tensor([-0.5, -0.5]), torch.zeros(98), torch.linspace(0.1, 10, 50)]),
}


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("which", ["smallest", "both"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_has_converged_is_the_lower_end(name: str, which: str, dtype: torch.dtype, make_matrix: Any) -> None:
    spectrum, tol = SPECTRA[name].double(), 1e-3
    matrix = make_matrix(spectrum, dtype)
    ends = 4 if which == "both" else 2
    pairs = smallest(matrix, ends, tol, which)
    assert bool(pairs.converged.all())
    exact = spectrum.sort().values[:2]
    found = pairs.values[-2:]
    slack = torch.maximum(tol * exact.abs(), torch.tensor(tol * float(spectrum.abs().max()), dtype=torch.float64))
    assert ((found - exact).abs() <= pairs.residuals[-2:] + slack).all()
    residuals = (matrix @ pairs.vectors - pairs.vectors * pairs.values.to(dtype)).norm(dim=0).double()
    torch.testing.assert_close(residuals, pairs.residuals, rtol=0.01, atol=1e-4 if dtype == torch.float32 else 1e-12)


@given(seed=st.integers(0, 10_000), low=st.floats(-1, 0), zeros=st.integers(0, 100))
@settings(max_examples=25, deadline=None, derandomize=True)  # a miss is improbable, not impossible
def test_none_lies_farther_below_than_is_claimed(seed: int, low: float, zeros: int, make_matrix: Any) -> None:
    generator = torch.Generator().manual_seed(seed)
    rest = torch.rand(SIZE - zeros - 1, generator=generator, dtype=torch.float64) ** 4 * 10
    spectrum = torch.cat([torch.tensor([low], dtype=torch.float64), torch.zeros(zeros, dtype=torch.float64), rest])
    pairs = smallest(make_matrix(spectrum, seed=seed), 1, 1e-2, seed=seed)
    assert bool(pairs.converged.all())
    assert pairs.missed <= 1e-3
    claimed = float(pairs.values[0]) - max(2e-2 * abs(float(pairs.values[0])), 1e-2 * float(spectrum.max()))
    assert float(spectrum.min()) >= claimed
    assert float(spectrum.min()) <= float(pairs.values[0]) + float(pairs.residuals[0])


def test_zero_costs_little_where_it_may_count_and_much_where_it_may_not(make_matrix: Any) -> None:
    matrix = make_matrix(SPECTRA["decay to zero"].double())
    lenient = smallest(matrix, 1, 1e-3)
    strict = lanczos(matrix_operator(matrix), 1, which="smallest", tol=1e-3, max_iter=1000)
    assert lenient.products < 100 < strict.products
    assert not strict.converged.all() or strict.residuals[0] <= 1e-3 * strict.values[0].abs()


def test_the_upper_end_is_held_to_its_own_tolerance(make_matrix: Any) -> None:
    spectrum = torch.cat([torch.linspace(-10, -1, 100), torch.linspace(-1, 1e-3, 50)]).double()
    pairs = smallest(make_matrix(spectrum), 1, 1e-3, "largest")
    assert float(pairs.values[0]) == pytest.approx(1e-3, rel=1e-3)
    assert pairs.residuals[0] <= 1e-3 * pairs.values[0].abs()


def at_both_ends(spectrum: Tensor, k: int, tol: float) -> Eigenpairs:
    """Of a diagonal matrix."""
    steps = lanczos_steps(len(spectrum), spectrum.new_empty(0), k, "both", tol, 200, vanishing=True)
    return drive(steps, lambda rows: rows * spectrum)


BULK = torch.rand(1196, generator=torch.Generator().manual_seed(0), dtype=torch.float64) - 0.5
LOPSIDED = {
    "the fifth is in the bulk": (torch.cat([torch.tensor([400.0, 30.0, 10.0, 3.0]), 0.2 * BULK]), 10, 1e-3, 400),
    "the upper end vanishes beside the lower": (torch.cat([torch.tensor([-100.0, 0.6]), 0.8 * BULK]), 2, 1e-2, 40),
}


@pytest.mark.parametrize("name", LOPSIDED)
def test_only_the_lower_end_may_vanish(name: str) -> None:
    """And a lower end that does leaves what is beside the upper pairs to be seen."""
    spectrum, k, tol, products = LOPSIDED[name]
    pairs, ordered = at_both_ends(spectrum, k, tol), spectrum.sort().values
    assert bool(pairs.converged.all())
    assert pairs.products <= products
    upper = pairs.values[: k // 2]
    torch.testing.assert_close(upper, ordered.flip(0)[: k // 2], rtol=tol, atol=0)
    assert bool((pairs.residuals[: k // 2] <= tol * upper.abs()).all())


def test_a_lower_end_that_nearly_vanishes_is_found_at_once_after_a_look_that_could_not_tell() -> None:
    """Between a tenth of the tolerance and the tolerance, beside the largest."""
    generator = torch.Generator().manual_seed(1)
    bulk = 8e-4 * torch.rand(1198, generator=generator, dtype=torch.float64) - 4e-4
    spectrum = torch.cat([torch.tensor([1.0, 0.5], dtype=torch.float64), bulk])
    steps = lanczos_steps(len(spectrum), spectrum.new_empty(0), 2, "smallest", 1e-3, 60, vanishing=True)
    pairs = drive(steps, lambda rows: rows * spectrum)
    assert bool(pairs.converged.all())
    assert pairs.products <= 60


def test_values_of_the_upper_end_are_as_exact_as_was_asked() -> None:
    spectrum = torch.cat([torch.tensor([22.9]), torch.logspace(-3, 0, 200)]).double()
    pairs = at_both_ends(spectrum, 10, 0.05)
    upper = pairs.converged[:5]
    assert bool(upper.any())
    assert bool((pairs.residuals[:5] <= 0.05 * pairs.values[:5].abs())[upper].all())
