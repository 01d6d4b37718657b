"""Ranks of several methods that were tried on the same seeds, as far as all comparisons at once tell them apart.

Methods (rows) and seeds (blocks) are taken to add up, x_ij = method_i + seed_j + error. Two methods differ where their
means are farther apart than Tukey's honest significant difference, q(k, (k-1)(n-1)) s / sqrt(n), with q the quantile of
the studentized range: with the stated probability no pair of all is told apart wrongly (Tukey 1953; for blocks, Miller,
Simultaneous Statistical Inference, 1981). A method's rank then lies between one more than the methods that are told to
be better, and as many less as are told to be worse.

One spread for all is not true where the seeds of one method lie much farther apart than those of the others: it would
hide every difference between these. So a method that makes up most of the spread by itself, and more than chance would
have it (Cochran's C, Annals of Eugenics 11, 1941), is taken out of it, and nothing is told of its own rank.

No spread is taken for less than the rounding of counts leaves (`figures.statistics`): accuracies may tie.
"""

import itertools
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from figures.statistics import LEVEL, least_variance

ROUNDING = 1e-12
"""Relative; what the order of a sum may change."""

_RARE = 1e-3
"""The probability with which a method that is like the others is taken for an unsteady one."""

_FEWEST_STEADY = 3

_DRAWS = 9999
"""Of a bootstrap: with 999 the end of an interval over eight methods moved by 0.3 with the seed of the draws."""


@dataclass(frozen=True)
class Rank:
    """One method's place; 1 is the smallest mean, and equal means share one."""

    mean: float
    rank: int
    best: int
    worst: int


def ranks(values: NDArray[np.float64]) -> tuple[list[Rank], float]:
    """Of numbers (methods, seeds), at least two of each: every method's rank, and the honest significant difference."""
    means, steady = _means(values), ~unsteady(values)
    pooled = values[steady]
    k, n = pooled.shape
    freedom = (k - 1) * (n - 1)
    spread = math.sqrt(max((_residuals(pooled) ** 2).sum() / freedom, _least(values - values[0], values)) / n)
    apart = _quantile(k, freedom) * spread
    found = []
    for m, place, told in zip(means, stats.rankdata(means, method="min"), steady, strict=True):
        better, worse = ((means < m - apart) & steady & told).sum(), ((means > m + apart) & steady & told).sum()
        found.append(Rank(float(m), int(place), 1 + int(better), len(means) - int(worse)))
    return found, apart


def unsteady(values: NDArray[np.float64], *, blocks: bool = True) -> NDArray[np.bool_]:
    """Of numbers (methods, seeds): which methods make up most of the spread by themselves, (methods,).

    With `blocks` the seeds' own effects are taken out first. Of three methods one may always.
    """
    least = _least(values - values[0] if blocks else values)
    left = np.ones(len(values), dtype=bool)
    while left.sum() > _FEWEST_STEADY:
        residuals = _residuals(values[left], blocks)
        k, freedom = len(residuals), values.shape[1] - 1
        own = np.maximum((residuals**2).sum(axis=1), freedom * least)
        by_chance = 1 / (1 + (k - 1) / stats.f.isf(_RARE / k, freedom, (k - 1) * freedom))
        if own.max() <= max(0.5, by_chance) * own.sum():
            break
        left[np.flatnonzero(left)[own.argmax()]] = False
    return ~left


def _residuals(values: NDArray[np.float64], blocks: bool = True) -> NDArray[np.float64]:
    effects = values.mean(axis=0) - values.mean() if blocks else 0.0
    return np.asarray(values - values.mean(axis=1, keepdims=True) - effects, dtype=np.float64)


@cache
def _quantile(k: int, freedom: int) -> float:
    """Of the studentized range; it takes SciPy a tenth of a second."""
    return float(stats.studentized_range.ppf(LEVEL, k, freedom))


def changes(
    without: NDArray[np.float64], under: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]:
    """Of `under` less `without`, paired (methods, seeds): means, what their intervals reach to either side, and whether
    a method is `unsteady`.

    The spread over seeds is taken to be alike for all methods but the unsteady ones, of which each has its own; with
    the stated probability every interval holds what it is for (Bonferroni).
    """
    differences = under - without
    k, n = differences.shape
    alone = unsteady(differences, blocks=False)
    squares = (_residuals(differences, blocks=False) ** 2).sum(axis=1)
    freedom = np.where(alone, n - 1, (~alone).sum() * (n - 1))
    least = _least(differences, np.stack([without, under]))
    variances = np.maximum(np.where(alone, squares, squares[~alone].sum()) / freedom, least)
    halves = stats.t.ppf(1 - (1 - LEVEL) / 2 / k, freedom) * np.sqrt(variances / n)
    return differences.mean(axis=1), halves, alone


def _least(*values: NDArray[np.float64]) -> float:
    """`least_variance` of the first of these that are not all alike."""
    return next((least for v in values if (least := least_variance(v.ravel().tolist()))), 0.0)


def agreement(one: NDArray[np.float64], other: NDArray[np.float64], kin: Sequence[str]) -> tuple[float, float, float]:
    """Spearman's rank correlation over methods of two numbers' means (methods, seeds), with a bootstrap interval.

    Methods are drawn, with all of the same `kin` at once: a method without and with MAN is one draw, not two. The
    interval is bias-corrected and accelerated (Efron, JASA 82, 1987); where there is none, as when all methods of a
    draw tie, it is the whole range, but for perfect agreement. Raises `ValueError` where all methods tie.
    """
    if all_tied(one) or all_tied(other):
        raise ValueError("all methods tie")
    pair = np.stack([_means(one), _means(other)])
    families = [np.flatnonzero(np.asarray(kin) == name) for name in dict.fromkeys(kin)]
    members = np.full((2, len(families), max(map(len, families))), np.nan)  # a smaller family has places to spare
    for number, own in enumerate(families):
        members[:, number, : len(own)] = pair[:, own]

    def correlation(drawn: NDArray[np.intp], axis: int = -1) -> NDArray[np.float64]:
        at = np.moveaxis(drawn, axis, -1)
        values = members[:, at].reshape(2, *at.shape[:-1], -1)
        placed = stats.rankdata(values, axis=-1, nan_policy="omit" if np.isnan(members).any() else "propagate")
        x, y = placed - np.nanmean(placed, axis=-1, keepdims=True)
        product = np.nansum(x * y, axis=-1) / np.sqrt(np.nansum(x**2, axis=-1) * np.nansum(y**2, axis=-1))
        return np.asarray(product, dtype=np.float64)

    everyone = np.arange(len(families))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # perfect agreement has no spread to correct for
        found = stats.bootstrap(
            (everyone,), correlation, n_resamples=_DRAWS, vectorized=True, confidence_level=LEVEL, rng=0
        ).confidence_interval
    rho = float(correlation(everyone))
    if np.isfinite(found).all():
        return rho, float(found.low), float(found.high)
    return (rho, rho, rho) if abs(rho) > 1 - ROUNDING else (rho, -1.0, 1.0)


def all_tied(values: NDArray[np.float64]) -> bool:
    """Whether all methods have one mean: numbers (methods, seeds) that rank nothing."""
    return bool(np.ptp(_means(values)) == 0)


def _means(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Over seeds (methods,), the same number where rounding alone sets them apart: accuracies are counts, and tie."""
    means = values.mean(axis=1)
    order = means.argsort(kind="stable")
    least = ROUNDING * np.abs(means).max()
    for before, at in itertools.pairwise(order):
        if means[at] - means[before] <= least:
            means[at] = means[before]
    return np.asarray(means, dtype=np.float64)
