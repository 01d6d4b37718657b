"""Worst-case adaptive sharpness by several steps of ascent (Andriushchenko, Croce, Mueller, Hein and Flammarion 2023).

    mean over batches S of m samples of  max { L_S(theta + |theta| * e) - L_S(theta) : |e|_p <= rho },  p = 2, infinity

Every parameter moves in proportion to its own magnitude, so rescaling a ReLU network leaves the number as it is. With
normalised logits, (z - mean z) / |z - mean z| in place of z, so does multiplying the outputs by a constant. Ours
differs from their code (github.com/tml-epfl/sharpness-vs-generalization, with m = 128 and 20 steps) in two ways:

- the ascent is made in e, so that every step of it has these invariances, for p = 2 too;
- the step is halved whenever it leads no higher, and not at moments fixed by the number of steps, so that more steps
  never give less.

A maximum found by ascent is a lower bound of the maximum. The rise at the highest point is evaluated in float64, also
where the ascent was made in float32: losses that differ by little cancel there.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from analysis.batches import regrouped
from analysis.class_axes import class_axis
from analysis.confirmation import in_float64_where_it_runs
from analysis.errors import MeasurementError, UncountedError, require_one_of
from analysis.losses import SummedLoss, cross_entropy, shift_of
from analysis.objective import loss_and_gradient, loss_at
from analysis.own_losses import logits_of
from analysis.problem import Problem
from analysis.subsets import say_uncounted
from analysis.vectors import norm, random_rows

Norm = Literal["linf", "l2"]

_LONGEST = 2.0  # times the radius: the first step, which reaches the border from anywhere
_GOING_ON = 0.75  # of a step is its own, the rest of the one before (Croce and Hein 2020)
_LEAST_NORM = 1e-10  # of logits that are divided by their norm


@dataclass(frozen=True)
class WorstCase:
    """The rise that an ascent found, which is no more than the greatest there is."""

    value: float  # mean over the batches
    values: Tensor  # (batches,) float64
    norm: Norm
    radius: float  # of e
    steps: int
    batch_size: int  # m
    normalised_logits: bool
    confirmed: bool  # the rises are differences of losses in float64


def worst_case_sharpness(
    problem: Problem,
    norm: Norm = "linf",
    radius: float = 0.001,
    *,
    steps: int = 20,
    batch_size: int = 128,
    normalised_logits: bool = False,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> WorstCase:
    """The mean over batches of `batch_size` samples (all, if there are fewer) of what `steps` of ascent climb.

    A last batch that is smaller is left out, and with a warning one of which no target counts. Costs steps + 1
    gradients over all samples. `progress` is told the batches done and their number. Raises `MeasurementError` for
    numbers that are none, for several processes, and for normalised logits of another loss than cross-entropy, and
    `UncountedError` where no target counts at all.

    >>> import torch
    >>> from analysis.problem import make_problem
    >>> from analysis.worst_case import worst_case_sharpness
    >>> _ = torch.manual_seed(0)
    >>> model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Tanh(), torch.nn.Linear(3, 2))
    >>> problem = make_problem(model, "cross_entropy", (torch.randn(20, 2), torch.arange(20) % 2))
    >>> near, far = (worst_case_sharpness(problem, radius=radius).value for radius in (0.001, 0.1))
    >>> 0 < near < far
    True
    """
    require_one_of(norm, Norm, "norm")
    if not 0 <= radius < math.inf or steps < 1 or batch_size < 1:
        raise MeasurementError(
            f"A worst case needs a radius of 0 or more, and at least one step and one sample, not {radius:g}, {steps} "
            f"and {batch_size}."
        )
    if problem.distributed:
        raise MeasurementError("Worst-case sharpness is computed in one process; run it without torchrun.")
    size = min(batch_size, problem.samples)
    of = with_normalised_logits(problem) if normalised_logits else problem
    exact = in_float64_where_it_runs(of)
    values: list[float] = []
    uncounted: list[int] = []
    count = problem.samples // size
    for place, batch in enumerate(regrouped(of.data, size), 1):
        generator = torch.Generator().manual_seed(seed)
        try:
            own = of.on([batch], checked=True)
        except UncountedError:
            uncounted.append(place)
            continue
        e = _climb(own, norm, radius, steps, generator)
        values.append(max(0.0, _rise((exact or of).on([batch], checked=True), e)))
        if progress:
            progress(place, count)
    say_uncounted(uncounted, count, size)
    found = torch.tensor(values, dtype=torch.float64)
    confirmed = exact is not None
    return WorstCase(found.mean().item(), found, norm, radius, steps, size, normalised_logits, confirmed)


def _rise(problem: Problem, e: Tensor) -> float:
    """L at theta + |theta| * e less L at theta."""
    theta = problem.point()
    return loss_at(problem, theta + theta.abs() * e.to(theta)) - loss_at(problem, theta)


def _climb(problem: Problem, norm_of: Norm, radius: float, steps: int, generator: torch.Generator) -> Tensor:
    """The e of the highest point met; 0, the start, where none was higher."""
    theta = problem.point()
    best, g = loss_and_gradient(problem)
    e = before = torch.zeros_like(theta)
    if not (theta * g).any():  # at a critical point any direction will do
        g = random_rows(1, len(theta), theta, generator)[0]
    at, slope, step = e, theta.abs() * g, _LONGEST * radius
    for _ in range(steps):
        reached = _within(e + step * _steepest(slope, norm_of), norm_of, radius)
        ahead = e + _GOING_ON * (reached - e) + (1 - _GOING_ON) * (e - before) if e is not before else reached
        before, e = e, _within(ahead, norm_of, radius)
        loss, g = loss_and_gradient(problem, theta + theta.abs() * e)
        if loss > best and math.isfinite(loss):
            best, at, slope = loss, e, theta.abs() * g
        else:
            e = before = at  # whose slope is the last that was kept
            step /= 2
    return at


def _steepest(slope: Tensor, norm_of: Norm) -> Tensor:
    """The e of norm one along which a function of this slope rises most."""
    return slope.sign() if norm_of == "linf" else slope / max(norm(slope), torch.finfo(slope.dtype).tiny)


def _within(e: Tensor, norm_of: Norm, radius: float) -> Tensor:
    """The nearest point of the ball."""
    if norm_of == "linf":
        return e.clamp(-radius, radius)
    length = norm(e)
    return e * (radius / length) if length > radius else e


def with_normalised_logits(problem: Problem) -> Problem:
    """The same problem with (z - mean z) / |z - mean z| over the classes in place of the logits z.

    Raises `MeasurementError` for a loss that takes no logits of classes.
    """
    shift = shift_of(problem.loss)
    if shift is None:
        raise MeasurementError(
            "Logits are normalised for cross_entropy and next_token alone: this loss takes no logits of classes."
        )
    function = problem.loss.function

    def normalised(outputs: Any, targets: Tensor) -> Tensor | tuple[Tensor, Tensor | float]:
        logits = logits_of(outputs)
        axis = class_axis(logits, targets) if function is cross_entropy else -1 if shift else 1
        centred = logits - logits.mean(axis, keepdim=True)
        lengths = torch.linalg.vector_norm(centred, dim=axis, keepdim=True)
        return function(centred / lengths.clamp(min=_LEAST_NORM), targets)

    return replace(problem, loss=SummedLoss(normalised, problem.loss.reduction))
