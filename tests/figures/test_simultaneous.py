"""Ranks with simultaneous intervals, and rank correlations, against what is known of them."""

import numpy as np
import pytest
from scipy import stats

from figures.simultaneous import agreement, ranks


def test_ranks_that_are_told_apart_and_those_that_are_not() -> None:
    values = np.array([[1.0, 1.1, 0.9], [1.05, 1.0, 1.0], [5.0, 5.2, 4.9], [9.0, 9.1, 9.2]])
    found, apart = ranks(values)
    assert [r.rank for r in found] == [1, 2, 3, 4]
    assert [(r.best, r.worst) for r in found] == [(1, 2), (1, 2), (3, 3), (4, 4)]
    assert 0.05 < apart < 3


def test_seeds_are_blocks() -> None:
    """What a seed adds to all methods alike neither hides nor makes a difference."""
    rng = np.random.default_rng(0)
    values = np.arange(4.0)[:, None] + 0.1 * rng.normal(size=(4, 5))
    shifted = values + 100 * rng.normal(size=5)
    assert ranks(shifted)[1] == pytest.approx(ranks(values)[1])
    assert [r.best for r in ranks(shifted)[0]] == [1, 2, 3, 4]


def test_two_methods_are_compared_by_a_paired_t_test() -> None:
    rng = np.random.default_rng(1)
    values = rng.normal(size=(2, 6))
    difference = values[0] - values[1]
    half = stats.t.ppf(0.975, 5) * difference.std(ddof=1) / np.sqrt(6)
    assert ranks(values)[1] == pytest.approx(half)


def test_equal_methods_are_told_apart_as_rarely_as_promised() -> None:
    rng = np.random.default_rng(2)
    wrong = sum(any(r.best > 1 or r.worst < 6 for r in ranks(rng.normal(size=(6, 4)))[0]) for _ in range(100))
    assert stats.binomtest(wrong, 100, 0.05, alternative="greater").pvalue > 1e-4
    assert wrong > 0


def test_agreement() -> None:
    one = np.array([[1.0, 1.1], [2.0, 2.1], [3.0, 3.1], [4.0, 4.2]])
    assert agreement(one, 10 * one)[0] == pytest.approx(1)
    rho, low, high = agreement(one, np.array([[4.0, 1.0], [3.0, 2.0], [2.0, 3.0], [1.0, 4.0]]) + 0.01 * one)
    assert low == pytest.approx(-1)
    assert high == pytest.approx(1)
    assert low <= rho <= high
