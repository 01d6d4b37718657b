"""The statements, and what it means that one holds, fails, or cannot be told for the error of its numbers.

Notation: layer l maps its input a to s = W a + b; a~ = [a; 1] where b belongs to the layer's block H_ll of the Hessian
H; B_n = d^2 loss_n / ds^2 of sample n. In a convolution U~_n, the matrix of the patches (one row per output position,
with a one where there is a bias), stands for the row a~_n. The proofs are in docs/theory.md.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Literal

ROUNDING = 1e-9
"""What float64 may leave between two sides that are equal, as a share of the matrix's norm: hundreds of times less than
any wrong factor, millions of times more than seen (the table of `flatlab verify`)."""

LEAST_BLOCK = 1e-5
"""Of the norm of the whole Hessian: rounding in a block that is smaller is judged as in one of this size."""

LEAST_CURVATURE = 1e-5
"""Of mean |J_n|_F^2, J the Jacobian of the outputs: where the loss is saturated, H is what is left of a difference of
numbers of that size, and rounding is judged as in a Hessian of this share of it."""

STATEMENTS: Mapping[str, str] = {
    "L": "L and ∇L as by torch alone",
    "D": "H v = Δ∇L",
    "T": "H v as by torch alone",
    "T (G)": "G v as by torch alone",
    "B": "H_ll v is the block of H v",
    "K": "H_ll = 1/N Σ ã ãᵀ ⊗ B_n",
    "A1": "λ(H_ll) ≤ 1/N Σ |ã|² λ(B_n)⁺",
    "A2": "λ(H_ll) ≤ mean|ã|² max λ(B_n)⁺",
    "A3": "λ(H_ll) ≤ mean|ã|² ½ Π ‖W_k‖²",
    "P": "H_ll ≥ 0",
    "S1": "λ(H) ≤ Σ λ(H_ll)",
    "S1 (G)": "λ(G) ≤ Σ λ(G_ll)",
    "S2": "λ(H) ≤ Σ λ(H_ll) − (m−1) λmin",
    "F": "λ(H) ≤ Σ p_k λ(H⁽ᵏ⁾)",
}
"""Every statement by its name; the first five say of random v that products are what they claim to be, Δ∇L being
differences of gradients (`differences.py`). λ is the largest eigenvalue, λ⁺ = max(λ, 0), λmin the smallest of H, m the
number of blocks, G the Gauss-Newton matrix, H⁽ᵏ⁾ the Hessian of client k and p_k its share."""

EQUALITIES = ("L", "D", "T", "T (G)", "B", "K", "P")
"""Statements whose sides are a distance and what is allowed it, not a value and its bound."""

CONDITIONS: Mapping[str, str] = {
    "A3": "the loss is cross-entropy and what follows the layer is piecewise linear with slopes of at most 1",
    "P": "what follows the layer is piecewise linear",
    "T": "differences do not refute torch's second derivatives",
    "S1": "H is positive semidefinite",
    "S1 (G)": "G is positive semidefinite, as it is for a loss that is convex in the outputs",
}
"""Where a statement is claimed; those not named are claimed everywhere."""

Outcome = Literal["holds", "unclear", "fails"]


@dataclass(frozen=True)
class Interval:
    """A number that is known to lie between two others."""

    low: float
    high: float

    @property
    def quoted(self) -> float:
        """The number as it is quoted: the lower end, which was found; what lies above was not excluded."""
        return self.low

    def __add__(self, other: "Interval") -> "Interval":
        return Interval(self.low + other.low, self.high + other.high)

    def times(self, factor: float) -> "Interval":
        """The product with a known number."""
        ends = (factor * self.low, factor * self.high)
        return Interval(min(ends), max(ends))


def exactly(value: float) -> Interval:
    """A number whose error is rounding."""
    return Interval(value, value)


def total(intervals: Iterable[Interval]) -> Interval:
    """The sum of intervals."""
    return sum(intervals, exactly(0.0))


@dataclass(frozen=True)
class Check:
    """left <= right for one network, or one of its layers."""

    statement: str
    layer: str  # "" where the statement speaks of the whole network
    left: Interval
    right: Interval
    scale: float  # norm of the matrix in question, against which rounding is judged
    claimed: bool = True  # whether the theory claims it here; where it does not, failing is no error

    @property
    def outcome(self) -> Outcome:
        """Holds or fails only if it does so wherever in their intervals the two numbers lie."""
        rounding = ROUNDING * self.scale
        if self.left.low > self.right.high + rounding:
            return "fails"
        return "holds" if self.left.high <= self.right.low + rounding else "unclear"

    @property
    def slack(self) -> float:
        """(right - left) / scale, at the quoted values; not divided where all is zero."""
        return (self.right.quoted - self.left.quoted) / (self.scale or 1.0)

    @property
    def tightness(self) -> float:
        """right / left: one where the bound is attained; nan where the left side is not positive."""
        return self.right.quoted / self.left.quoted if self.left.quoted > 0 else math.nan


@dataclass(frozen=True)
class Tally:
    """One statement over many checks, either where it is claimed or where it is not."""

    statement: str
    claimed: bool
    cases: int
    holds: int
    unclear: int
    fails: int
    worst_slack: float  # smallest (right - left) / scale
    tightness: tuple[float, float, float] | None  # smallest, median and largest right / left


def tally(checks: Iterable[Check]) -> list[Tally]:
    """Count the outcomes by statement, in the order of `STATEMENTS`, first where it is claimed."""
    checks = list(checks)
    rows = []
    for statement in STATEMENTS:
        for claimed in (True, False):
            own = [check for check in checks if check.statement == statement and check.claimed == claimed]
            if own:
                rows.append(_count(statement, claimed, own))
    return rows


def _count(statement: str, claimed: bool, checks: list[Check]) -> Tally:
    outcomes = [check.outcome for check in checks]
    ratios = sorted(check.tightness for check in checks if not math.isnan(check.tightness))
    is_bound = statement not in EQUALITIES
    return Tally(
        statement=statement,
        claimed=claimed,
        cases=len(checks),
        holds=outcomes.count("holds"),
        unclear=outcomes.count("unclear"),
        fails=outcomes.count("fails"),
        worst_slack=min(check.slack for check in checks),
        tightness=(ratios[0], median(ratios), ratios[-1]) if is_bound and ratios else None,
    )


def broken(checks: Iterable[Check]) -> list[Check]:
    """The checks that refute a claim."""
    return [check for check in checks if check.claimed and check.outcome == "fails"]
