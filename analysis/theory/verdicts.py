"""From paired measurements to a verdict per claim, by the numbers alone.

Runs are paired by seed: x with MAN, y without. For a quantity that is positive the effect is the ratio exp(mean log
(x / y)), for accuracy the mean of x - y; its interval is Student's. Whether it differs from nothing is asked by the
paired t test, and since one study asks many such questions, the p-values of all of them are corrected together (Holm
1979): with no effects at all, the chance of a single wrong answer stays below 5 %.

No spread is taken for less than can be told: an accuracy is a count, whose rounding is 1 / sqrt(12) of its step, and
what is compared by ratio is measured to about 1e-3 of itself. So equal differences never make p = 0.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import stats

LEVEL = 0.05
FEWEST_PAIRS = 3

_MEASURED = 1e-3
"""Share of itself to which a number that is compared by ratio is measured."""

Direction = Literal["lower", "higher"]
Answer = Literal["supported", "contradicted", "undecided"]


@dataclass(frozen=True)
class Claim:
    """What MAN is said to do to one quantity."""

    quantity: str  # a key of the measurements
    direction: Direction
    ratio: bool = True  # compared by ratio, else by difference


@dataclass(frozen=True)
class Comparison:
    """One claim at one setting of MAN."""

    claim: Claim
    setting: str
    pairs: int
    effect: float  # x / y, or x - y; nan without pairs
    low: float  # of the 95 % interval
    high: float
    p: float  # of the paired t test, uncorrected
    p_holm: float  # corrected for all comparisons of the study
    doubt: str = ""  # "!" where a number behind it did not converge, "~" where it is exact to rounding alone

    @property
    def answer(self) -> Answer:
        """Supported or contradicted where the corrected p-value is below 5 %, by the sign of the effect.

        Two pairs decide nothing: their t test rests on a single difference of differences.
        """
        if self.pairs < FEWEST_PAIRS or not self.p_holm < LEVEL:
            return "undecided"
        lower = self.effect < (1.0 if self.claim.ratio else 0.0)
        return "supported" if lower == (self.claim.direction == "lower") else "contradicted"


def compare(
    claims: Sequence[Claim],
    without: Mapping[int, Mapping[str, float]],
    settings: Mapping[str, Mapping[int, Mapping[str, float]]],
) -> list[Comparison]:
    """Compare every setting with the runs `without` MAN; both map a seed to the quantities measured.

    The p-values are not yet corrected.
    """
    comparisons = []
    for claim in claims:
        for setting, runs in settings.items():
            seeds = sorted(set(runs) & set(without))
            x = [runs[seed][claim.quantity] for seed in seeds]
            y = [without[seed][claim.quantity] for seed in seeds]
            comparisons.append(_paired(claim, setting, x, y))
    return comparisons


def corrected(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """The comparisons of a whole study, with their p-values corrected for its size."""
    p = holm([comparison.p for comparison in comparisons])
    return [replace(comparison, p_holm=value) for comparison, value in zip(comparisons, p, strict=True)]


def _paired(claim: Claim, setting: str, x: Sequence[float], y: Sequence[float]) -> Comparison:
    a, b = np.array(x, dtype=float), np.array(y, dtype=float)
    usable = np.isfinite(a) & np.isfinite(b)
    if claim.ratio:
        usable &= (a > 0) & (b > 0)
        d = np.log(a[usable] / b[usable])
        back: Callable[[float], float] = math.exp
    else:
        d, back = (a - b)[usable], float
    n = len(d)
    if n < 2:
        effect = back(float(d[0])) if n else math.nan
        return Comparison(claim, setting, n, effect, math.nan, math.nan, 1.0, 1.0)
    step = _MEASURED if claim.ratio else _step(d) or _step(np.concatenate([a[usable], b[usable]]))
    mean, error = float(d.mean()), max(float(d.std(ddof=1)), step / math.sqrt(12)) / math.sqrt(n)
    if error == 0:  # all numbers are alike
        return Comparison(claim, setting, n, back(mean), math.nan, math.nan, 1.0, 1.0)
    p = 2 * float(stats.t.sf(abs(mean) / error, n - 1))
    margin = error * float(stats.t.ppf(1 - LEVEL / 2, n - 1))
    return Comparison(claim, setting, n, back(mean), back(mean - margin), back(mean + margin), p, p)


def _step(values: NDArray[np.float64]) -> float:
    """The smallest distance between two values that is no rounding; 0 where all are alike."""
    ordered = np.sort(values)
    gaps = np.diff(ordered)
    gaps = gaps[gaps > 1e-9 * np.abs(ordered).max(initial=0.0)]
    return float(gaps.min()) if len(gaps) else 0.0


def holm(p: Sequence[float]) -> list[float]:
    """The p-values corrected for their number (Holm, Scandinavian Journal of Statistics 6, 1979)."""
    from statsmodels.stats.multitest import multipletests  # seconds, which only a study takes

    return [float(value) for value in multipletests(p, method="holm")[1]] if p else []


def verdict(comparisons: Iterable[Comparison]) -> Answer:
    """Of one claim for all its settings: supported where every one is, contradicted where any one is."""
    answers = [comparison.answer for comparison in comparisons]
    if "contradicted" in answers:
        return "contradicted"
    return "supported" if answers and all(answer == "supported" for answer in answers) else "undecided"


@dataclass(frozen=True)
class Point:
    """One layer of one checkpoint."""

    group: Hashable  # points of one group share what is held fixed; its mean is taken away
    seed: int
    norm: float  # mean |a|^2 entering the layer
    eigenvalue: float  # the layer's largest


@dataclass(frozen=True)
class Correlation:
    """Pearson's r of log norm and log eigenvalue."""

    over: str  # what varies between the points
    layer: str  # "" for all layers together
    points: int
    seeds: int
    r: float
    low: float  # of the 95 % interval; nan with fewer than three seeds
    high: float


def correlate(over: str, layer: str, points: Iterable[Point]) -> Correlation | None:
    """Correlate log norm and log eigenvalue, the groups' means taken away.

    Layers and rounds of one run are no independent observations, seeds are: so the interval comes from leaving out one
    seed after the other (the jackknife of Fisher's z over clusters, with Student's quantile; Miller 1974, "The
    jackknife: a review"). None where fewer than four points are free, or a side does not vary.
    """
    usable = [point for point in points if min(point.norm, point.eigenvalue) > 0]
    seeds = sorted({point.seed for point in usable})
    whole = _fisher_z(usable)
    if whole is None:
        return None
    z, count = whole
    without = [_fisher_z([point for point in usable if point.seed != seed]) for seed in seeds]
    low = high = math.nan
    if len(seeds) >= FEWEST_PAIRS and all(part is not None for part in without):
        pseudo = np.array([len(seeds) * z - (len(seeds) - 1) * part[0] for part in without if part])
        margin = float(stats.t.ppf(1 - LEVEL / 2, len(seeds) - 1)) * float(stats.sem(pseudo))
        low, high = math.tanh(z - margin), math.tanh(z + margin)
    return Correlation(over, layer, count, len(seeds), math.tanh(z), low, high)


def _fisher_z(points: Sequence[Point]) -> tuple[float, int] | None:
    """(atanh r, points used) within the groups of two or more; None where that is not defined."""
    groups: dict[Hashable, list[tuple[float, float]]] = defaultdict(list)
    for point in points:
        groups[point.group].append((math.log(point.norm), math.log(point.eigenvalue)))
    logs = [np.array(group) for group in groups.values() if len(group) > 1]
    count = sum(map(len, logs))
    if count - len(logs) + 1 < 4:
        return None
    a, b = np.concatenate([group - group.mean(axis=0) for group in logs]).T
    if np.abs(a).max() < 1e-6 or np.abs(b).max() < 1e-6:
        return None
    return math.atanh(float(np.clip(np.corrcoef(a, b)[0, 1], -1 + 1e-15, 1 - 1e-15))), count
