"""Whether the derivatives that a model and loss give are those of the loss.

A backward pass may be another function's: straight-through estimators, detached parts, hooks that scale or turn
gradients round, custom functions of which the second derivative forgets a term. All of these have symmetric products.
"""

import math
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from analysis.agreement import away_from
from analysis.batches import Batch, batch_length, moved, sliced
from analysis.central_difference import STEPS, central_difference
from analysis.derivatives import gradients
from analysis.errors import MeasurementError, some
from analysis.members import named_parameters
from analysis.parametric_loss import ParametricLoss
from analysis.vectors import dot

_APART = 1e-3  # of themselves; a wrong derivative is off by more, a right one by 1e-4 where differences settle
_NOTHING = 1e-8  # of what is usual: below it all is rounding
_POINTS = 8  # at random, that say what is usual
_COARSE = (1e-2, 1e-3, 1e-4)  # steps that are seen where a part computes in float32, which finer ones are not
_NEARLY = 0.05  # of themselves, at a coarse step of such a part
_TENDING = 0.25  # of a disagreement: so near to what finer steps see is the last of these, where all is in float64

_ZERO, _ONE = torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)

Pieces = Mapping[str, Tensor]
"""A vector of the selected parameters, in pieces as they are."""


def refuse_wrong_derivatives(problem: ParametricLoss, first: Batch) -> None:
    """Hold a gradient and a product to differences of losses and gradients, of one sample and in float64.

    That is done away from the parameters, where neither a fitted loss nor inputs that are zero lie at a kink or hide
    anything. What does not run in float64, or has no difference that two steps agree on, is not decided here. Takes
    the room of some six vectors in float64.

    Raises:
        MeasurementError: a derivative is another than the loss's.
    """
    try:
        double = problem.of_a_copy(torch.float64)
        _try_lines(double, _counted(double, first))
    except (RuntimeError, TypeError):  # something in it stays in float32, or the device has no float64
        return


def _try_lines(problem: ParametricLoss, one: Batch) -> None:
    generator = torch.Generator().manual_seed(0)
    theta = {name: away_from(p.detach(), generator) for name, p in problem.parameters.items()}
    gradient = _Line(problem, one, theta, theta).gradient(0.0)
    if not all(piece.isfinite().all() for piece in gradient.values()):
        return
    _warn_of_what_is_fixed(problem, one, theta, gradient)
    way = {name: _direction(theta[name], piece, generator) for name, piece in gradient.items()}
    line = _Line(problem, one, theta, way)
    _refuse_slope(line, _inner(gradient, way))
    del gradient
    _refuse_curve(line)


def _warn_of_what_is_fixed(problem: ParametricLoss, one: Batch, theta: Pieces, gradient: Pieces) -> None:
    """Name parameters that the loss changes with and has no gradient by: every number counts them as constants."""
    generator = torch.Generator().manual_seed(2)
    still = [name for name, piece in gradient.items() if not piece.any()]
    padding = {name: row for name, row in _padding(problem).items() if not gradient[name][row].any()}
    way = {name: torch.zeros_like(p) for name, p in theta.items()}
    for name in {*still, *padding}:
        drawn = torch.randn(theta[name].shape, generator=generator, dtype=torch.float64).to(theta[name])
        rows = slice(None) if name in still else padding[name]
        way[name][rows] = drawn[rows]
    line = _Line(problem, one, theta, way)
    seen = _settled_elsewhere(line.loss, 0.0) if still or padding else None
    if seen and abs(seen) > _NOTHING * line.usual(lambda other: other.loss(0.0)):
        said = still + [f"row {padding[name]} of {name} (padding_idx)" for name in padding if name not in still]
        warnings.warn(
            f"The loss changes with {some(said)}, but has no gradient by any of them (detached, or under "
            "no_grad): they are measured as if they were fixed. Set requires_grad_(False) on what is.",
            stacklevel=2,
        )


def _padding(problem: ParametricLoss) -> dict[str, int]:
    """Weights of embeddings with the row that torch gives no gradient by."""
    rows = {
        id(module.weight): module.padding_idx
        for module in problem.model.modules()
        if isinstance(module, nn.Embedding) and module.padding_idx is not None
    }
    named = named_parameters(problem.model)
    return {name: rows[id(p)] for name, p in named if id(p) in rows and name in problem.parameters}


def _direction(theta: Tensor, gradient: Tensor, generator: torch.Generator) -> Tensor:
    """Along the gradient and at random alike, as long as theta: so every parameter's share is seen.

    What gets no gradient is held fixed: an embedding's padding, a part under no_grad.
    """
    random = torch.randn(gradient.shape, generator=generator, dtype=torch.float64).to(gradient) * (gradient != 0)
    parts = [gradient / gradient.norm(), random / random.norm()] if gradient.any() else [gradient]
    direction: Tensor = sum(parts[1:], parts[0]) * theta.norm()
    return direction


@dataclass(frozen=True)
class _Line:
    """The loss of one sample at theta + t way, and its derivatives in t as the model gives them."""

    problem: ParametricLoss
    one: Batch
    theta: Pieces
    way: Pieces

    def loss(self, t: float) -> float:
        with torch.no_grad():
            return self.problem.share(self.one, self._at(t)).total.item()

    def gradient(self, t: float) -> Pieces:
        leaves = self._at(t)
        found = gradients([self.problem.share(self.one, leaves).total], list(leaves.values()))
        return dict(zip(leaves, found, strict=True))

    def slope(self, t: float) -> float:
        return _inner(self.gradient(t), self.way)

    def curve(self) -> float:
        leaves, ways = self._at(0.0), list(self.way.values())
        slopes = gradients([self.problem.share(self.one, leaves).total], list(leaves.values()), create_graph=True)
        images = gradients(slopes, list(leaves.values()), ways)
        return _inner(dict(zip(leaves, images, strict=True)), self.way)

    def usual(self, of: Callable[["_Line"], float]) -> float:
        """The largest of a number at random parameters as large as theta: what rounding is measured by.

        A saturated loss may be next to nothing where it is looked at, and its derivatives too.
        """
        generator = torch.Generator().manual_seed(1)
        return max(abs(of(replace(self, theta=self._elsewhere(generator)))) for _ in range(_POINTS))

    def _elsewhere(self, generator: torch.Generator) -> Pieces:
        size = _norm(self.theta) / math.sqrt(max(1, sum(piece.numel() for piece in self.theta.values())))
        return {name: size * torch.randn(p.shape, generator=generator).to(p) for name, p in self.theta.items()}

    def _at(self, t: float) -> dict[str, Tensor]:
        return {name: torch.add(p, self.way[name], alpha=t).requires_grad_() for name, p in self.theta.items()}


def _refuse_slope(line: _Line, given: float) -> None:
    seen = _settled_elsewhere(line.loss, given)
    if seen is not None and abs(seen - given) > _NOTHING * line.usual(lambda other: other.loss(0.0)):
        raise MeasurementError(
            f"The gradient that the model and the loss give is not that of the loss: along a line it is {given:.5g}, "
            f"where the loss changes by {seen:.5g}. A part is detached, is given another gradient (a straight-through "
            "estimator, a custom function), or a hook changes it: curvature would be that of nothing."
        )


def _refuse_curve(line: _Line) -> None:
    given = line.curve()
    seen = _settled_elsewhere(line.slope, given)
    if not seen:
        return  # zero is also what a slope says that float32 does not move
    if abs(seen - given) > _NOTHING * line.usual(lambda other: other.slope(0.0)):
        raise MeasurementError(
            f"The Hessian's products are not those of the loss: along a line its curvature is {given:.5g}, where "
            f"gradients change by {seen:.5g}. A second derivative is wrong, in torch or in a function of your own; "
            "replace it."
        )


def _settled_elsewhere(of: Callable[[float], float], given: float) -> float | None:
    """The derivative of a function at 0, where differences settle on another than is given; one is mostly enough."""

    def quotient(step: float) -> float:
        return (of(step) - of(-step)) / (2 * step)

    if not _apart(quotient(STEPS[0]), given, _APART):
        return None
    true = central_difference(lambda t: torch.tensor([of(t.item())], dtype=torch.float64), _ZERO, _ONE)
    seen = true.value.item()
    if not true.settled or not _apart(seen, given, _APART) or _is_hidden(given, seen, map(quotient, _COARSE)):
        return None
    return seen


def _is_hidden(given: float, seen: float, coarsely: Iterable[float]) -> bool:
    """Whether coarse steps see what is given, and do not tend to what the fine ones see: a part computes in float32."""
    widest, middle, last = coarsely
    tend = abs(middle - seen) < abs(middle - given) and abs(last - seen) < _TENDING * abs(given - seen)
    return not tend and any(not _apart(found, given, _NEARLY) for found in (widest, middle, last))


def _apart(one: float, other: float, share: float) -> bool:
    return abs(one - other) > share * max(abs(one), abs(other))


def _counted(problem: ParametricLoss, first: Batch) -> Batch:
    """One sample that counts, if one of the first few does."""
    for n in range(min(4, batch_length(first))):
        one = moved(sliced(first, n, n + 1), problem.device, problem.dtype)
        with torch.no_grad():
            if float(problem.share(one, {}).normaliser) != 0:
                break
    return one


def _norm(pieces: Pieces) -> float:
    return math.sqrt(sum(torch.linalg.vector_norm(piece).item() ** 2 for piece in pieces.values()))


def _inner(one: Pieces, other: Pieces) -> float:
    return sum(dot(piece.reshape(-1), other[name].reshape(-1)) for name, piece in one.items())
