"""Whether the derivatives that a model and loss give are those of the loss.

A backward pass may be another function's: straight-through estimators, detached parts, hooks that scale or turn
gradients round, custom functions of which the second derivative forgets a term. All of these have symmetric products.
"""

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from analysis.agreement import away_from
from analysis.batches import Batch, batch_length, moved, sliced
from analysis.central_difference import central_difference
from analysis.derivatives import gradients
from analysis.errors import MeasurementError
from analysis.model_copy import convert, private_copy
from analysis.parametric_loss import ParametricLoss
from analysis.vectors import dot, norm, random_rows

_APART = 1e-2  # of themselves; a wrong derivative is off by more, a right one by 1e-4 where differences settle
_NOTHING = 1e-8  # of what is usual: below it all is rounding
_POINTS = 8  # at random, that say what is usual
_COARSE = (1e-2, 1e-3, 1e-4)  # steps that are seen where a part computes in float32, which finer ones are not
_NEARLY = 0.05  # of themselves, at a coarse step


def refuse_wrong_derivatives(problem: ParametricLoss, first: Batch) -> None:
    """Hold a gradient and a product to differences of losses and gradients, of one sample and in float64.

    That is done away from the parameters, where neither a fitted loss nor inputs that are zero lie at a kink or hide
    anything. What does not run in float64, or has no difference that two steps agree on, is not decided here.

    Raises:
        MeasurementError: a derivative is another than the loss's.
    """
    double = _in_float64(problem)
    try:
        _compare(double, first)
    except RuntimeError:  # something in it stays in float32
        return


def _in_float64(problem: ParametricLoss) -> ParametricLoss:
    model = private_copy(problem.model)
    convert(model, problem.device, torch.float64)
    return replace(problem.of(model), dtype=torch.float64)


def _compare(problem: ParametricLoss, first: Batch) -> None:
    one = _counted(problem, first)
    generator = torch.Generator().manual_seed(0)
    theta = problem.flatten([away_from(p, generator) for p in problem.parameters.values()])
    gradient = _gradient(problem, one, theta)
    if not gradient.isfinite().all():
        return
    (random,) = random_rows(1, problem.size, theta, generator)
    random *= gradient != 0  # what gets no gradient is held fixed: an embedding's padding, a part under no_grad
    ways = [x * (norm(theta) or 1.0) / norm(x) for x in (gradient, random) if norm(x) > 0]
    for way in ways:
        _refuse_slope(problem, one, theta, way, dot(gradient, way))
    if ways:
        _refuse_curve(problem, one, theta, torch.stack(ways).sum(0))


def _refuse_slope(problem: ParametricLoss, one: Batch, theta: Tensor, way: Tensor, given: float) -> None:
    def losses(at: Tensor) -> Tensor:
        return _loss(problem, one, at)[None]

    def off(found: float, share: float) -> bool:
        return abs(found - given) > share * max(abs(found), abs(given))

    true = central_difference(losses, theta, way)
    if not true.settled or not off(true.value.item(), _APART):
        return
    for step in _COARSE:
        found = (losses(theta + step * way) - losses(theta - step * way)).item() / (2 * step)
        if not off(found, _NEARLY):
            return
    if abs(true.value.item() - given) <= _NOTHING * _usual(problem, one, theta, _loss):
        return
    raise MeasurementError(
        f"The gradient that the model and the loss give is not that of the loss: along a line it is {given:.4g}, where "
        f"the loss changes by {true.value.item():.4g}. A part is detached, is given another gradient (a straight-"
        "through estimator, a custom function), or a hook changes it: curvature would be that of nothing."
    )


def _refuse_curve(problem: ParametricLoss, one: Batch, theta: Tensor, way: Tensor) -> None:
    leaves = _leaves(problem, theta)
    slopes = gradients([problem.share(one, leaves).total], list(leaves.values()), create_graph=True)
    given = problem.flatten(gradients(slopes, list(leaves.values()), problem.split(way)))
    true = central_difference(lambda at: _gradient(problem, one, at), theta, way)
    apart, large = norm(given - true.value), max(norm(given), norm(true.value))
    if not true.settled or norm(true.value) == 0 or apart <= _APART * large:
        return
    if apart > _NOTHING * _usual(problem, one, theta, _gradient) * norm(way):
        raise MeasurementError(
            f"The Hessian's products are not those of the loss: one of norm {norm(given):.4g} is {apart:.4g} from what "
            "gradients change by. A second derivative is wrong, in torch or in a function of your own; replace it."
        )


def _usual(
    problem: ParametricLoss, one: Batch, theta: Tensor, of: Callable[[ParametricLoss, Batch, Tensor], Tensor]
) -> float:
    """The largest norm of a loss or gradient at random parameters as large as `theta`: what rounding is measured by.

    A saturated loss may be next to nothing where it is looked at, and its derivatives too.
    """
    generator = torch.Generator().manual_seed(1)
    points = random_rows(_POINTS, len(theta), theta, generator) * (norm(theta) / math.sqrt(max(1, len(theta))))
    return max(norm(of(problem, one, point).reshape(-1)) for point in points)


def _counted(problem: ParametricLoss, first: Batch) -> Batch:
    """One sample that counts, if one of the first few does."""
    for n in range(min(4, batch_length(first))):
        one = moved(sliced(first, n, n + 1), problem.device, problem.dtype)
        with torch.no_grad():
            if float(problem.share(one, {}).normaliser) != 0:
                return one
    return one


def _leaves(problem: ParametricLoss, theta: Tensor) -> dict[str, Tensor]:
    pieces = zip(problem.parameters, problem.split(theta), strict=True)
    return {name: piece.detach().clone().requires_grad_() for name, piece in pieces}


def _loss(problem: ParametricLoss, one: Batch, theta: Tensor) -> Tensor:
    with torch.no_grad():
        return problem.share(one, _leaves(problem, theta)).total


def _gradient(problem: ParametricLoss, one: Batch, theta: Tensor) -> Tensor:
    leaves = _leaves(problem, theta)
    return problem.flatten(gradients([problem.share(one, leaves).total], list(leaves.values())))
