"""Vectors are made orthogonal to rounding, whatever is left of them."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.errors import MeasurementError
from analysis.vectors import orthogonalised, require_finite

SIZE = 40_000


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    n=st.integers(1, 12),
    b=st.integers(1, 3),
    left=st.sampled_from([1.0, 0.3, 1e-2, 1e-4]),
    one_sign=st.booleans(),
)
def test_what_is_left_is_orthogonal_to_rounding(
    dtype: torch.dtype, seed: int, n: int, b: int, left: float, one_sign: bool
) -> None:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(n + b, SIZE, dtype=torch.float64, generator=generator)
    basis = torch.linalg.qr((rows[:n].abs() if one_sign else rows[:n]).T).Q.T.to(dtype)
    w = (torch.randn(b, n, dtype=torch.float64, generator=generator) @ basis.double()).to(dtype)
    w += left * w.norm() * (rows[n:] / rows[n:].norm(dim=1, keepdim=True)).to(dtype)
    rest, coefficients = orthogonalised(w, basis)
    eps = torch.finfo(dtype).eps
    q, r, before = (np.asarray(x, dtype=np.longdouble) for x in (basis, rest, w))
    assert (np.linalg.norm((r @ q.T).astype(float), axis=1) <= 50 * eps * rest.double().norm(dim=1).numpy()).all()
    back = np.asarray(coefficients.T, dtype=np.longdouble) @ q + r
    assert (np.linalg.norm((back - before).astype(float), axis=1) <= 50 * eps * w.double().norm(dim=1).numpy()).all()


def test_a_long_sum_of_one_sign_does_not_drown_in_rounding() -> None:
    n = 1 << 22  # a plain sum of as many numbers is off by a thousand roundings in float32
    generator = torch.Generator().manual_seed(0)
    rows = torch.cat([torch.rand(1, n, generator=generator), torch.randn(2, n, generator=generator)]).double()
    rows = torch.linalg.qr(rows.T).Q.T  # the first row has one sign
    q, w = rows[:2].float(), (rows[:1] + rows[2:]).float()
    rest, coefficients = orthogonalised(w, q)
    eps = torch.finfo(torch.float32).eps
    assert (coefficients[:, 0] - (q.double() @ w[0].double())).abs().max().item() <= 4 * eps
    assert (q.double() @ rest[0].double()).abs().max().item() <= 4 * eps


@pytest.mark.parametrize("scale", [1e-37, 1.0, 1e36])
def test_coefficients_of_long_vectors_are_those_of_float64_whatever_their_length(scale: float) -> None:
    n = (1 << 20) + 321  # sums in float32 are those of chunks, and a rest
    generator = torch.Generator().manual_seed(1)
    q = torch.linalg.qr(torch.randn(n, 3, dtype=torch.float64, generator=generator)).Q.T.float()
    w = (scale * torch.randn(2, n, dtype=torch.float64, generator=generator)).float()
    _, coefficients = orthogonalised(w, q)
    lengths = w.double().norm(dim=1)
    assert ((coefficients - q.double() @ w.double().T).abs() <= 1e-9 * lengths).all()


def test_nothing_is_left_of_what_lies_in_the_basis() -> None:
    basis = torch.eye(3, 10)
    rest, coefficients = orthogonalised(torch.tensor([[1e-30, 2e30, 3.0] + [0.0] * 7]), basis)
    assert rest.count_nonzero() == 0
    torch.testing.assert_close(coefficients[:, 0], torch.tensor([1e-30, 2e30, 3.0]).double())


@pytest.mark.parametrize("last", [float("nan"), float("inf")])
def test_numbers_whose_squares_overflow_are_finite_and_others_are_not(last: float) -> None:
    large = torch.full((2, 3), 1e30)
    assert require_finite(large) is large
    large[1, 2] = last
    with pytest.raises(MeasurementError, match="not finite"):
        require_finite(large)
