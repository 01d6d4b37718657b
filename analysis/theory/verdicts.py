"""From paired measurements to a verdict per claim, by the numbers alone.

Runs are paired by seed: x with MAN, y without. For a quantity that is positive the effect is the ratio exp(mean log
(x / y)), for accuracy the mean of x - y; its interval is Student's. Whether it differs from nothing is asked by the
paired t test, and since one study asks many such questions, the p-values of all of them are corrected together (Holm
1979): with no effects at all, the chance of a single wrong answer stays below 5 %.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from scipy import stats

LEVEL = 0.05
FEWEST_PAIRS = 3

Direction = Literal["lower", "higher"]
Answer = Literal["supported", "contradicted", "undecided"]


@dataclass(frozen=True)
class Claim:
    """What MAN is said to do to one quantity."""

    quantity: str  # a key of the measurements
    direction: Direction
    ratio: bool = True  # compared by ratio, else by difference

    @property
    def sentence(self) -> str:
        """The claim in words."""
        return f"MAN makes {self.quantity} {self.direction}"


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
    mean, error = float(d.mean()), float(stats.sem(d))
    if error <= 1e-12 * abs(mean):  # the same difference in every pair
        p, margin = (0.0 if mean else 1.0), 0.0
    else:
        p = float(stats.ttest_1samp(d, 0.0).pvalue)
        margin = error * float(stats.t.ppf(1 - LEVEL / 2, n - 1))
    return Comparison(claim, setting, n, back(mean), back(mean - margin), back(mean + margin), p, p)


def holm(p: Sequence[float]) -> list[float]:
    """The p-values corrected for their number (Holm, Scandinavian Journal of Statistics 6, 1979)."""
    corrected, largest = [0.0] * len(p), 0.0
    for rank, i in enumerate(sorted(range(len(p)), key=p.__getitem__)):
        largest = max(largest, min(1.0, (len(p) - rank) * p[i]))
        corrected[i] = largest
    return corrected


def verdict(comparisons: Iterable[Comparison]) -> Answer:
    """Of one claim for all its settings: supported where every one is, contradicted where any one is."""
    answers = [comparison.answer for comparison in comparisons]
    if "contradicted" in answers:
        return "contradicted"
    return "supported" if answers and all(answer == "supported" for answer in answers) else "undecided"


@dataclass(frozen=True)
class Correlation:
    """Pearson's r of log norm and log eigenvalue."""

    over: str  # what varies between the points
    layer: str  # "" for all layers together
    points: int
    r: float
    low: float  # of the 95 % interval (Fisher's z)
    high: float


def correlate(over: str, layer: str, groups: Sequence[Sequence[tuple[float, float]]]) -> Correlation | None:
    """Correlate log norm and log eigenvalue over the (norm, eigenvalue) in each group, the groups' means taken away.

    None where fewer than four degrees of freedom are left, or a side does not vary.
    """
    logs = [np.log([pair for pair in group if min(pair) > 0]) for group in groups]
    logs = [group for group in logs if len(group) > 1]
    points = sum(map(len, logs))
    freedom = points - len(logs) + 1
    if freedom < 4:
        return None
    a, b = np.concatenate([group - group.mean(axis=0) for group in logs]).T
    if np.abs(a).max() < 1e-6 or np.abs(b).max() < 1e-6:
        return None
    r = float(np.clip(np.corrcoef(a, b)[0, 1], -1, 1))
    margin = float(stats.norm.ppf(1 - LEVEL / 2)) / math.sqrt(freedom - 3)
    low, high = (math.tanh(math.atanh(np.clip(r, -1 + 1e-15, 1 - 1e-15)) + side) for side in (-margin, margin))
    return Correlation(over, layer, points, r, low, high)
