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

    mean: float
    deviation: float | None  # sample standard deviation; None for a single seed
    count: int


@dataclass(frozen=True)
class Difference:
    """Mean of paired differences and its confidence interval."""

    mean: float
    low: float | None  # None: a single pair has no interval
    high: float | None
    pairs: int


def sample(values: Sequence[float]) -> Sample | None:
    """Summarise `values`; None if there is none."""
    if not values:
        return None
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return Sample(float(np.mean(values)), deviation, len(values))


def paired_difference(without: Mapping[int, float], with_: Mapping[int, float]) -> Difference | None:
    """`with_` minus `without`, paired by seed, with the 95 % interval of Student's t; None without a common seed."""
    differences = [with_[seed] - without[seed] for seed in without if seed in with_]
    summary = sample(differences)
    if summary is None:
        return None
    if summary.deviation is None:
        return Difference(summary.mean, None, None, 1)
    half = stats.t.ppf((1 + LEVEL) / 2, summary.count - 1) * summary.deviation / math.sqrt(summary.count)
    return Difference(summary.mean, summary.mean - half, summary.mean + half, summary.count)
