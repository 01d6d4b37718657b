import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from figures.statistics import paired_difference, sample

VALUES = st.lists(st.tuples(st.floats(-100, 100), st.floats(-100, 100)), min_size=2, max_size=9)


@given(VALUES)
def test_the_interval_is_that_of_the_paired_t_test(pairs: list[tuple[float, float]]) -> None:
    without, with_ = ({seed: pair[side] for seed, pair in enumerate(pairs)} for side in (0, 1))
    gain = paired_difference(without, {**with_, 99: 5.0})  # a seed without a partner takes no part
    assert gain is not None
    assert gain.pairs == len(pairs)
    differences = [b - a for a, b in pairs]
    assert gain.mean == pytest.approx(np.mean(differences), abs=1e-9)
    if np.std(differences) > 1e-6:
        test = stats.ttest_rel(list(with_.values()), list(without.values()))
        low, high = test.confidence_interval(0.95)
        assert (gain.low, gain.high) == pytest.approx((low, high))
        assert (low > 0 or high < 0) == (test.pvalue < 0.05)


def test_one_pair_has_no_interval_and_none_no_difference() -> None:
    assert paired_difference({0: 1.0}, {1: 2.0}) is None
    single = paired_difference({0: 1.0}, {0: 3.0})
    assert single is not None
    assert (single.mean, single.low, single.high) == (2.0, None, None)


def test_the_deviation_is_the_sample_s() -> None:
    summary = sample([1.0, 2.0, 4.0])
    assert summary is not None
    assert summary.mean == pytest.approx(7 / 3)
    assert summary.deviation == pytest.approx(np.sqrt(((4 / 3) ** 2 + (1 / 3) ** 2 + (5 / 3) ** 2) / 2))
    assert sample([]) is None


def test_equal_differences_have_an_interval() -> None:
    """Three seeds that all gain one image of 359, which is a step of the count and no certainty."""
    without = {0: 0.95, 1: 0.96, 2: 0.94}
    gain = paired_difference(without, {seed: value + 1 / 359 for seed, value in without.items()})
    assert gain is not None
    assert gain.low is not None
    assert gain.high is not None
    assert gain.high - gain.low > 1e-3
    alike = paired_difference({0: 1.0, 1: 1.0}, {0: 1.0, 1: 1.0})
    assert alike is not None
    assert alike.low is None
