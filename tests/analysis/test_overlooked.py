"""What a search by Lanczos may have overlooked, against the inequality that bounds it, evaluated densely."""

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from analysis.eigenpairs import PROBABILITY
from analysis.lanczos import lanczos
from analysis.operators import matrix_operator
from analysis.overlooked import overlooked
from analysis.vectors import random_rows

TOL = 1e-3


def run(spectrum: Tensor, found: int, borders: Sequence[tuple[int, float]], seed: int = 0) -> tuple[bool | None, int]:
    """Look beside the first `found` eigenvectors of diag(spectrum)."""
    Q = torch.eye(len(spectrum), dtype=torch.float64)[:found]
    search = overlooked(Q, borders, TOL, 200, torch.Generator().manual_seed(seed))
    try:
        rows = next(search)
        while True:
            rows = search.send(rows * spectrum)
    except StopIteration as stop:
        verdict: tuple[bool | None, int] = stop.value
        return verdict


def steps_by_the_inequality(spectrum: Tensor, found: int, x: float, seed: int) -> int:
    """The first d at which |prod_i (C - t_i) z| / prod_i |x - t_i| says that e . z is improbably small."""
    C = torch.cat([torch.zeros(found), spectrum[found:]]).double()
    z = random_rows(1, len(C), C, torch.Generator().manual_seed(seed))[0]
    z[:found] = 0
    for d in range(1, len(C)):
        K, _ = torch.linalg.qr(torch.stack([z * (C / C.abs().max()) ** i for i in range(d)], dim=1))
        w = z
        product = 1.0
        for t in torch.linalg.eigvalsh(K.T @ (C[:, None] * K)).tolist():
            w = (C - t) * w
            product *= abs(x * (1 + TOL) - t)
        if w.norm() / product * math.sqrt(2 / math.pi) <= PROBABILITY:
            return d
    raise AssertionError("never")


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("rest", [3.0, 6.0])
def test_it_stops_as_soon_as_the_inequality_allows(rest: float, seed: int) -> None:
    spectrum = torch.cat([torch.tensor([10.0, 9.0, 8.0]), torch.linspace(rest, -rest, 197)]).double()
    assert run(spectrum, 3, [(1, 8.0)], seed) == (False, steps_by_the_inequality(spectrum, 3, 8.0, seed))


@pytest.mark.parametrize(("border", "values"), [((1, 5.0), [9.0, 5.0, 6.0]), ((-1, -5.0), [-9.0, -5.0, -6.0])])
def test_an_eigenvalue_beyond_the_border_is_seen(border: tuple[int, float], values: list[float]) -> None:
    spectrum = torch.cat([torch.tensor(values), torch.linspace(3, -3, 197)]).double()
    assert [run(spectrum, 2, [border], seed)[0] for seed in range(40)] == [True] * 40
    assert not run(spectrum, 3, [border])[0]


def test_a_copy_of_the_last_wanted_changes_nothing_and_costs_little() -> None:
    spectrum = torch.cat([torch.tensor([9.0, 5.0, 5.0]), torch.linspace(3, -3, 197)]).double()
    crossed, steps = run(spectrum, 2, [(1, 5.0)])
    assert not crossed
    assert steps < 20


@pytest.mark.parametrize("copied", [0, 1, 3])
def test_second_copies_stay_overlooked_more_rarely_than_promised(copied: int) -> None:
    """Single-vector Lanczos sees one copy; the share of wrong results is that of what is overlooked."""
    distinct = [10 / (1 + i / 3) for i in range(30)]
    spectrum = sorted([*distinct, distinct[copied], *torch.linspace(1, -1, 170).tolist()], reverse=True)
    operator = matrix_operator(torch.diag(torch.tensor(spectrum, dtype=torch.float64)))
    exact = torch.tensor(spectrum[:5], dtype=torch.float64)
    results = [lanczos(operator, 5, tol=TOL, seed=seed).values for seed in range(100)]
    wrong = sum(not torch.allclose(values, exact, rtol=TOL) for values in results)
    assert wrong <= PROBABILITY * len(results)


def test_a_look_that_ran_out_of_products_is_no_convergence() -> None:
    spectrum = torch.cat([torch.tensor([9.0, 5.0]), torch.linspace(3, -3, 198)]).double()
    operator = matrix_operator(torch.diag(spectrum))
    full = lanczos(operator, 2, tol=TOL).products
    for max_iter in range(1, full):
        pairs = lanczos(operator, 2, tol=TOL, max_iter=max_iter)
        assert pairs.converged.all() == (2 * max_iter >= full)
        assert pairs.products == min(full, 2 * max_iter)
