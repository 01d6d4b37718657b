"""One eigenvalue as it is reported: its value, and how exact it is."""

import math
from dataclasses import dataclass

from analysis.eigenpairs import PROBABILITY, Eigenpairs
from analysis.overlooked import BEYOND


@dataclass(frozen=True)
class Eigenvalue:
    """One eigenvalue and how exact it is."""

    value: float
    residual: float  # |H v - value v|, no less than rounding: an eigenvalue lies within this distance of value
    relative_residual: float  # residual / |value|
    error: float  # the sharper bound, about residual^2 / gap, where a look bounds the rest (k > 1), else the residual
    converged: bool  # relative_residual within the tolerance, or at the lower end zero to it; `missed` <= PROBABILITY
    rounded: bool  # above the tolerance, but no product in this precision leaves less
    missed: (
        float  # the probability, at most, that a wanted one was missed by more than 2 tol, or tol |A| at the lower end
    )
    confirmed: bool  # value and residual come from a product in float64

    def reach(self, tol: float) -> float:
        """By how much the largest eigenvalue may lie above `value`, the first of a search by `lanczos` to `tol`.

        What lies beyond by less than `BEYOND` tol was not excluded, and where the search was not finished nothing was.
        """
        if self.missed > PROBABILITY:
            return math.inf
        return max(self.residual, BEYOND * tol * abs(self.value)) if self.missed > 0 else self.residual


def listed(pairs: Eigenpairs) -> tuple[Eigenvalue, ...]:
    """The pairs one by one, without their vectors."""
    columns = (pairs.values, pairs.residuals, pairs.relative_residuals, pairs.quadratic, pairs.converged, pairs.rounded)
    return tuple(
        Eigenvalue(value, residual, relative, error, converged, rounded, pairs.missed, pairs.confirmed)
        for value, residual, relative, error, converged, rounded in zip(
            *(column.tolist() for column in columns), strict=True
        )
    )
