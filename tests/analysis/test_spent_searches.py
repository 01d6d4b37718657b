"""Searches whose products end, or that are asked for nearly all there is: what was found is kept, no more is said."""

from typing import Any

import pytest
import torch

from analysis.errors import MeasurementError
from analysis.lanczos import lanczos
from analysis.operators import matrix_operator
from analysis.power import power_iteration


def test_more_products_do_not_lose_what_fewer_found() -> None:
    """A look sees that an eigenvalue was overlooked, and the products end amid the search that follows."""
    bulk = 4 * (torch.rand(1996, generator=torch.Generator().manual_seed(0), dtype=torch.float64) - 0.5)
    spectrum = torch.cat([torch.tensor([30.0, 30.0, 15.0, 8.0]), bulk])
    for most in range(5, 12):
        pairs = lanczos(matrix_operator(torch.diag(spectrum)), k=2, max_iter=most)
        assert pairs.values[0].item() == pytest.approx(30, rel=1e-3)
        assert pairs.values[1].item() >= 14.9


@pytest.mark.parametrize(("size", "k"), [(131, 60), (110, 45), (101, 41)])
def test_many_pairs_of_a_matrix_that_is_hardly_larger(size: int, k: int) -> None:
    matrix = torch.randn(size, size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    matrix = matrix + matrix.T
    pairs = lanczos(matrix_operator(matrix), k=k)
    assert bool(pairs.converged.all())
    torch.testing.assert_close(pairs.values, torch.linalg.eigvalsh(matrix).flip(0)[:k], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("search", [lanczos, power_iteration])
def test_no_pairs_are_no_question(search: Any) -> None:
    with pytest.raises(MeasurementError, match="1 or more, not 0"):
        search(matrix_operator(torch.eye(3)), k=0)


def test_a_power_iteration_whose_products_are_spent_ends() -> None:
    spectrum = torch.full((1500,), 5.0)
    spectrum[:2] = 1.0
    start = torch.eye(1500)[:, :2]
    assert not power_iteration(
        matrix_operator(torch.diag(spectrum)), k=2, max_iter=2, tol=0.1, start=start
    ).converged.any()
