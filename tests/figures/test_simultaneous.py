"""Ranks with simultaneous intervals, and rank correlations, against what is known of them."""

import numpy as np
import pytest
from scipy import stats

from figures.simultaneous import agreement, changes, ranks, unsteady


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
    one = np.arange(12.0)[:, None] + np.array([0.0, 0.1])
    kin = [f"method {i}" for i in range(12)]
    assert agreement(one, 10 * one, kin) == pytest.approx((1, 1, 1))
    assert agreement(one, -one, kin) == pytest.approx((-1, -1, -1))
    noisy = one + 6 * np.random.default_rng(0).normal(size=one.shape)
    rho, low, high = agreement(one, noisy, kin)
    assert rho == pytest.approx(stats.spearmanr(one.mean(1), noisy.mean(1)).statistic)
    assert -1 <= low < rho < high <= 1


def test_where_draws_tie_no_interval_is_claimed() -> None:
    """A draw without the last method has nothing to rank by."""
    last = np.zeros((6, 2))
    last[5] = 1
    other = np.array([3.0, 1, 2, 6, 4, 5])[:, None] + np.zeros(2)
    rho, low, high = agreement(last, other, [str(i) for i in range(6)])
    assert 0 < rho < 1
    assert (low, high) == (-1, 1)
    with pytest.raises(ValueError, match="all methods tie"):
        agreement(np.zeros((6, 2)), other, [str(i) for i in range(6)])


def test_a_method_and_its_run_under_man_are_one_draw() -> None:
    """Twins add no evidence: the interval of twelve pairs is that of twelve methods."""
    rng = np.random.default_rng(3)
    one, other = rng.normal(size=(2, 12, 3)) + np.arange(12.0)[:, None] / 6
    kin = [f"method {i}" for i in range(12)]
    alone = agreement(one, other, kin)
    twins = agreement(np.repeat(one, 2, axis=0), np.repeat(other, 2, axis=0), [k for k in kin for _ in range(2)])
    assert twins == pytest.approx(alone, abs=1e-9)


def test_an_interval_covers_the_correlation_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(4)
    kin = [str(i) for i in range(24)]
    true = 6 / np.pi * np.arcsin(0.6 / 2)  # Spearman's for normal variables of correlation 0.6
    covered = 0
    for _ in range(60):
        x, e = rng.normal(size=(2, 24, 1))
        _, low, high = agreement(x, 0.6 * x + 0.8 * e, kin)
        covered += low <= true <= high
    assert stats.binomtest(covered, 60, 0.93, alternative="less").pvalue > 1e-3


def test_changes_are_held_by_all_intervals_at_once() -> None:
    rng = np.random.default_rng(5)
    true = np.linspace(-1, 1, 12)
    held = 0
    for _ in range(300):
        means, half, _ = changes(np.zeros((12, 3)), true[:, None] + rng.normal(size=(12, 3)))
        held += bool((np.abs(means - true) <= half).all())
    assert stats.binomtest(held, 300, 0.95, alternative="less").pvalue > 1e-3
    one = rng.normal(size=(1, 6))
    assert changes(np.zeros_like(one), one)[1][0] == pytest.approx(stats.t.ppf(0.975, 5) * one.std(ddof=1) / np.sqrt(6))


def test_one_method_whose_seeds_lie_far_apart_hides_no_difference_of_the_others() -> None:
    rng = np.random.default_rng(6)
    values = np.arange(12.0)[:, None] + 0.1 * rng.normal(size=(12, 3))
    wild = values.copy()
    wild[4] += [-30.0, 0.0, 30.0]
    assert unsteady(wild).tolist() == [i == 4 for i in range(12)]
    found, apart = ranks(wild)
    others, alone = ranks(np.delete(wild, 4, axis=0))
    assert apart == pytest.approx(alone)
    assert (found[4].best, found[4].worst) == (1, 12)
    for one, other in zip(found[:4] + found[5:], others, strict=True):
        assert (one.best, one.worst) == (other.best, other.worst + 1)  # of the wild one nothing is told
    means, halves, _ = changes(np.zeros_like(wild), wild)
    t = stats.t.ppf(1 - 0.05 / 2 / 12, [2, 11 * 2])
    assert halves[4] == pytest.approx(t[0] * wild[4].std(ddof=1) / np.sqrt(3))
    rest = np.delete(wild, 4, axis=0).var(axis=1, ddof=1).mean()
    assert np.delete(halves, 4) == pytest.approx(t[1] * np.sqrt(rest / 3))
    assert means == pytest.approx(wild.mean(axis=1))


def test_a_method_like_the_others_is_hardly_ever_unsteady() -> None:
    rng = np.random.default_rng(7)
    for k, n in ((4, 2), (4, 3), (12, 2), (46, 3)):
        found = sum(bool(unsteady(rng.normal(size=(k, n))).any()) for _ in range(300))
        assert stats.binomtest(found, 300, 2e-3, alternative="greater").pvalue > 1e-3, (k, n)
    assert not unsteady(np.array([[0.0, 1.0], [5.0, 5.0], [7.0, 7.0]])).any()  # of three nothing is said
    assert not unsteady(np.ones((6, 3))).any()


def test_means_that_rounding_alone_sets_apart_tie() -> None:
    """The same right answers in another order: 94.6 twice, but for the last digit."""
    same = np.array(
        [[95.1, 94.3, 94.4], [94.4, 95.1, 94.3], [94.3, 94.4, 95.1], [90.0, 91.0, 92.0], [96.0, 97.0, 98.0]]
    )
    assert len(set(same.mean(axis=1))) > 3  # or nothing is tried here
    assert [r.rank for r in ranks(same)[0]] == [2, 2, 2, 1, 5]
    other = np.array([1.0, 2.0, 3.0, 4.0, 5.0])[:, None] + np.zeros((5, 3))
    expected = stats.spearmanr([2, 2, 2, 1, 5], other[:, 0]).statistic
    assert agreement(same, other, ["a", "b", "c", "d", "e"])[0] == pytest.approx(expected)


def test_counts_that_tie_over_seeds_are_no_certainty() -> None:
    """Right answers of 359: equal differences leave the rounding of a count, and one method's spread is no outlier."""
    without = np.array([[330, 331], [331, 332], [329, 331], [320, 321]]) / 359
    under = np.array([[335, 336], [334, 335], [333, 335], [322, 325]]) / 359
    _, halves, alone = changes(without, under)
    assert not alone.any()
    pooled = 0.5 / 359**2  # of differences 5, 5; 3, 3; 4, 4; 2, 4 in counts: 2 over four degrees of freedom
    assert halves == pytest.approx(stats.t.ppf(1 - 0.025 / 4, 4) * np.sqrt(pooled / 2))
    alike = np.stack([without[:, 0], without[:, 0]], axis=1)
    _, halves, _ = changes(alike, alike + 2 / 359)
    assert halves == pytest.approx(stats.t.ppf(1 - 0.025 / 4, 4) * np.sqrt(1 / 359**2 / 12 / 2))
    assert ranks(alike)[1] == pytest.approx(stats.studentized_range.ppf(0.95, 4, 3) * np.sqrt(1 / 359**2 / 12 / 2))
