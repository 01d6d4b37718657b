"""Ranks of several methods that were tried on the same seeds, as far as all comparisons at once tell them apart.

Methods (rows) and seeds (blocks) are taken to add up, x_ij = method_i + seed_j + error. Two methods differ where their
means are farther apart than Tukey's honest significant difference, q(k, (k-1)(n-1)) s / sqrt(n), with q the quantile of
the studentized range: with the stated probability no pair of all is told apart wrongly (Tukey 1953; for blocks, Miller,
Simultaneous Statistical Inference, 1981). A method's rank then lies between one more than the methods that are told to
be better, and as many less as are told to be worse.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from figures.statistics import LEVEL


@dataclass(frozen=True)
class Rank:
    """One method's place; 1 is the smallest mean."""

    mean: float
    rank: int
    best: int
    worst: int


def ranks(values: NDArray[np.float64]) -> tuple[list[Rank], float]:
    """Of numbers (methods, seeds), at least two of each: every method's rank, and the honest significant difference."""
    k, n = values.shape
    means = values.mean(axis=1)
    residuals = values - means[:, None] - values.mean(axis=0) + values.mean()
    freedom = (k - 1) * (n - 1)
    spread = math.sqrt((residuals**2).sum() / freedom / n)
    apart = float(stats.studentized_range.ppf(LEVEL, k, freedom)) * spread
    order = means.argsort(kind="stable").argsort(kind="stable")
    found = [
        Rank(float(m), int(place) + 1, 1 + int((means < m - apart).sum()), k - int((means > m + apart).sum()))
        for m, place in zip(means, order, strict=True)
    ]
    return found, apart


def agreement(one: NDArray[np.float64], other: NDArray[np.float64], draws: int = 2000) -> tuple[float, float, float]:
    """Spearman's rank correlation over methods of two numbers' means (methods, seeds), with a bootstrap interval.

    Seeds are drawn, not methods: the methods are those that there are, and each seed is one repetition of all.
    """
    rng = np.random.default_rng(0)
    n = one.shape[1]

    def correlation(seeds: Any) -> float:
        return float(stats.spearmanr(one[:, seeds].mean(axis=1), other[:, seeds].mean(axis=1)).statistic)

    drawn = [correlation(rng.integers(n, size=n)) for _ in range(draws)]
    low, high = np.nanquantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return correlation(np.arange(n)), float(low), float(high)
