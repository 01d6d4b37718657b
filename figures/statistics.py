"""Means over seeds, and differences of runs that share their seed.

An accuracy is a count, and so is anything that is printed with few digits: equal differences do not say that there is
no spread, only that it is below a step of the count. So a spread never is taken for less than a step's rounding, which
is 1 / sqrt(12) of the step (the standard deviation of a uniform error).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

LEVEL = 0.95


def factor(logarithm: float) -> float:
    """The ratio of that logarithm; infinite where no number is as large, as an end of an interval over two seeds."""
    with np.errstate(over="ignore"):
        return float(np.exp(logarithm))


@dataclass(frozen=True)
class Sample:
    """Mean and spread of one number over seeds."""

    mean: float  # NaN where no value is finite
    deviation: float | None  # sample standard deviation; None for a single seed
    count: int
    left_out: int = 0  # values that are not finite


@dataclass(frozen=True)
class Difference:
    """Mean of paired differences and its confidence interval."""

    mean: float
    low: float | None  # None: a single pair, or values that are all alike, have no interval
    high: float | None
    pairs: int


def sample(values: Sequence[float]) -> Sample | None:
    """Summarise the finite ones of `values`, and count the others; None if there is no value."""
    if not values:
        return None
    finite = [value for value in values if math.isfinite(value)]
    deviation = float(np.std(finite, ddof=1)) if len(finite) > 1 else None
    mean = float(np.mean(finite)) if finite else math.nan
    return Sample(mean, deviation, len(finite), len(values) - len(finite))


def paired_difference(without: Mapping[int, float], with_: Mapping[int, float]) -> Difference | None:
    """`with_` minus `without`, paired by seed, with the 95 % interval of Student's t.

    None without a common seed at which both are finite.
    """
    pairs = [(without[seed], with_[seed]) for seed in without if seed in with_]
    differences = [b - a for a, b in pairs]
    summary = sample(differences)
    if summary is None or summary.count == 0:
        return None
    least = least_variance(differences) or least_variance([value for pair in pairs for value in pair])
    deviation = max(summary.deviation or 0.0, math.sqrt(least))
    if summary.deviation is None or deviation == 0:
        return Difference(summary.mean, None, None, summary.count)
    half = stats.t.ppf((1 + LEVEL) / 2, summary.count - 1) * deviation / math.sqrt(summary.count)
    return Difference(summary.mean, summary.mean - half, summary.mean + half, summary.count)


def least_variance(values: Sequence[float]) -> float:
    """What the rounding of counts leaves of any spread: a twelfth of a step's square; 0 where `values` are all alike.

    The step is the smallest distance between two of the finite `values` that is no rounding of floating point.
    """
    finite = np.sort([value for value in values if math.isfinite(value)])
    gaps = np.diff(finite)
    gaps = gaps[gaps > 1e-9 * np.abs(finite).max(initial=0.0)]
    return float(gaps.min()) ** 2 / 12 if len(gaps) else 0.0
