"""Means over seeds, and differences of runs that share their seed."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

LEVEL = 0.95


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
    low: float | None  # None: a single pair has no interval
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
    differences = [with_[seed] - without[seed] for seed in without if seed in with_]
    summary = sample(differences)
    if summary is None or summary.count == 0:
        return None
    if summary.deviation is None:
        return Difference(summary.mean, None, None, 1)
    half = stats.t.ppf((1 + LEVEL) / 2, summary.count - 1) * summary.deviation / math.sqrt(summary.count)
    return Difference(summary.mean, summary.mean - half, summary.mean + half, summary.count)
