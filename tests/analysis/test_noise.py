"""What runs on a GPU alone, tried on the CPU: random numbers from their places, and inner products as sums."""

import pytest
import torch

from analysis import vectors
from analysis.noise import normal_numbers, uniform


def test_words_are_those_of_splitmix64() -> None:
    """The first three outputs for the seed 0, of which uniform numbers keep the upper 53 bits."""
    published = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    expected = [((word >> 11) + 0.5) * 2.0**-53 for word in published]
    assert uniform(0, torch.tensor([1, 2, 3])).tolist() == expected


def test_numbers_are_standard_normal_and_belong_to_their_seed() -> None:
    """Moments within five of their standard deviations, and no correlation of one with the next, or of two draws."""
    n, like = 1_000_000, torch.empty(0, dtype=torch.float64)
    generator = torch.Generator().manual_seed(7)
    x, y = normal_numbers(n, like, generator), normal_numbers(n, like, generator)
    assert abs(x.mean()) * n**0.5 < 5
    assert abs(x.square().mean() - 1) * (n / 2) ** 0.5 < 5
    assert abs((x**3).mean()) * (n / 15) ** 0.5 < 5
    assert abs((x**4).mean() - 3) * (n / 96) ** 0.5 < 5
    assert abs((x[:-1] * x[1:]).mean()) * n**0.5 < 5
    assert abs((x * y).mean()) * n**0.5 < 5
    assert torch.equal(normal_numbers(n, like, torch.Generator().manual_seed(7)), x)


def test_numbers_do_not_depend_on_how_many_are_made_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    like, whole = torch.empty(0), normal_numbers(1000, torch.empty(0), torch.Generator().manual_seed(1))
    monkeypatch.setattr("analysis.noise._AT_ONCE", 300)
    assert torch.equal(normal_numbers(1000, like, torch.Generator().manual_seed(1)), whole)


def test_inner_products_by_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vectors, "_PIECE", 100)
    generator = torch.Generator().manual_seed(0)
    left, right = torch.randn(3, 1234, generator=generator), torch.randn(2, 1234, generator=generator)
    expected = left.double() @ right.double().T
    torch.testing.assert_close(vectors._summed_products(left, right), expected, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(vectors.dots(left, right), expected, rtol=1e-13, atol=1e-13)
