"""Derivatives of a map by central differences, with what they may be off by."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from analysis.vectors import norm

STEPS = (1e-5, 1e-6, 1e-7, 1e-8, 1e-9)
"""Of the length of a direction, from the best for a smooth map to one that crosses no kink of a large network."""

SETTLED, AGREED = 1e-4, 1e-7
"""Differences with two steps that agree so far, relative to themselves, are believed, and need no smaller step."""


@dataclass(frozen=True)
class Difference:
    """The derivative of a map along a direction by central differences."""

    value: Tensor
    error: float  # norm of the disagreement of two steps, and of what rounding may hide from both

    @property
    def settled(self) -> bool:
        """Whether two steps agree: no kink lies between the points, and rounding is small."""
        return self.error <= SETTLED * norm(self.value)


def central_difference(
    f: Callable[[Tensor], Tensor], at: Tensor, direction: Tensor, rounding: float = 0.0
) -> Difference:
    """df(at + t direction)/dt at t = 0 from the two neighbouring steps of `STEPS` that agree best.

    `rounding` is the least change of f, in norm, that is seen at all: where a saturated f stays the same in both steps
    they agree on zero. A kink between the points changes the difference by its jump over the step, so that two steps
    disagree; where one lies at the point itself no step helps, and the difference is not `settled`.
    """

    def quotient(step: float) -> Tensor:
        return (f(at + step * direction) - f(at - step * direction)) / (2 * step)

    coarse = quotient(STEPS[0])
    best: Difference | None = None
    for step in STEPS[1:]:
        fine = quotient(step)
        found = Difference(coarse, norm(coarse - fine) + rounding / (10 * step))
        if best is None or found.error < best.error:
            best = found
        if best.error <= AGREED * norm(best.value):
            break
        coarse = fine
    assert best is not None
    return best
