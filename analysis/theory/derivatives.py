"""Are the products those of the loss's derivatives? Statements L, D, T and B, on random directions.

A direction v moves all parameters, or those of one layer; the product's answer is compared in all parameters, so that
mixed blocks count. What it is compared with comes from `reference.py`, by kernels that are not ours: torch's second
derivatives, to rounding, and differences of gradients, to the error that two steps show.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from analysis.layers import LayerBlocks
from analysis.objective import loss_and_gradient
from analysis.operators import SymmetricOperator
from analysis.problem import Problem
from analysis.theory.reference import Difference, Reference, central_difference
from analysis.theory.statements import LEAST_CURVATURE, Check, Interval, exactly
from analysis.vectors import norm

_SLACK = 1e-6
"""Of itself: what a difference may be off by beside the disagreement of two steps."""

Operator = Callable[[Problem], SymmetricOperator]
Progress = Callable[[str], None]


def derivative_checks(
    problem: Problem, hessian: Operator, gauss_newton: Operator, progress: Progress = lambda stage: None
) -> Iterator[Check]:
    """Check loss, gradient and the products of the given operators with `problem`, which is a mean in float64."""
    reference, pieces = Reference(problem), _in_pieces(problem)
    progress("derivatives")
    v = _normal(problem.size, problem, seed=1)
    floor = LEAST_CURVATURE * reference.stretch2(v)
    yield from _first_derivatives(reference, pieces, v, floor)
    yield from _second_derivatives(reference, "", v, hessian(problem)(v), reference.product(v), floor)
    by_torch = reference.gauss_newton_product(v)
    yield _equal("T (G)", "", gauss_newton(pieces)(v), by_torch, v, floor)
    H, blocks = hessian(pieces), LayerBlocks(pieces)
    places = positions(problem)
    for seed, (name, layer) in enumerate(blocks.layers.items(), start=2):
        progress(f"derivatives: {name}")
        own = torch.cat([places[full] for full in layer.parameters.values()])
        v = torch.zeros_like(v)
        v[own] = _normal(len(own), problem, seed)
        by_torch, floor = reference.product(v), LEAST_CURVATURE * reference.stretch2(v)
        yield from _second_derivatives(reference, name, v, H(v), by_torch, floor)
        yield _equal("B", name, blocks({name: v[own][None]})[name][0], by_torch[own], v[own], floor)


def positions(problem: Problem) -> Mapping[str, Tensor]:
    """Where each parameter's entries lie in theta."""
    places = torch.arange(problem.size, device=problem.device)
    sizes = [parameter.numel() for parameter in problem.parameters.values()]
    return dict(zip(problem.parameters, places.split(sizes), strict=True))


def _in_pieces(problem: Problem) -> Problem:
    """The same loss in three chunks and a smaller one, of whose graphs one is kept: as large problems go."""
    size = min(problem.chunk_size, max(1, problem.samples // 3))
    return replace(problem, chunk_size=size, cached_samples=min(problem.cached_samples, size))


def _normal(size: int, problem: Problem, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(size, dtype=torch.float64, generator=generator).to(problem.device)


def _first_derivatives(reference: Reference, pieces: Problem, v: Tensor, floor: float) -> Iterator[Check]:
    """Loss and gradient against torch alone; and the gradient's part along `v` against differences of losses."""
    loss, gradient = loss_and_gradient(pieces)
    theta = reference.theta
    expected_loss, expected = reference.loss(theta), reference.gradient(theta)
    yield Check("L", "", exactly(abs(loss - expected_loss)), exactly(0.0), max(abs(expected_loss), 1e-5))
    scale = max(norm(expected), math.sqrt(LEAST_CURVATURE * floor))
    yield Check("L", "", exactly(norm(gradient - expected)), exactly(0.0), scale)

    def losses(theta: Tensor) -> Tensor:
        return torch.tensor([reference.loss(theta)], dtype=torch.float64, device=theta.device)

    direction = _as_long_as(theta, v)
    slope = central_difference(losses, theta, direction)
    apart = norm(torch.dot(gradient, direction) - slope.value)
    scale = max(norm(slope.value), abs(expected_loss), math.sqrt(reference.stretch2(direction)))
    yield Check("L", "", exactly(apart), _allowed(slope, apart), scale)


def _second_derivatives(
    reference: Reference, layer: str, v: Tensor, product: Tensor, by_torch: Tensor, floor: float
) -> Iterator[Check]:
    """The product H v (p,) against differences of gradients, and against torch's."""
    direction = _as_long_as(reference.theta, v)
    curved = central_difference(reference.gradient, reference.theta, direction)
    to_norm = norm(v) / norm(direction) * _to_frobenius(v)
    apart = norm(product * (norm(direction) / norm(v)) - curved.value)
    scale = max(to_norm * norm(curved.value), floor)
    yield Check("D", layer, exactly(to_norm * apart), _allowed(curved, apart).times(to_norm), scale)
    yield _equal("T", layer, product, by_torch, v, floor)


def _equal(statement: str, layer: str, product: Tensor, expected: Tensor, v: Tensor, floor: float) -> Check:
    """Two products of matrices with `v` are one; `floor` is the least norm against which rounding is judged."""
    difference, scale = _to_frobenius(v) * norm(product - expected), _to_frobenius(v) * norm(expected)
    return Check(statement, layer, exactly(difference), exactly(0.0), max(scale, floor))


def _to_frobenius(v: Tensor) -> float:
    """sqrt(p) / |v| of the p entries that are not zero: times |D v|, it has |D|_F as its root mean square."""
    return math.sqrt(torch.count_nonzero(v).item()) / norm(v)


def _as_long_as(theta: Tensor, v: Tensor) -> Tensor:
    """`v` as long as theta is where v moves it."""
    return v * ((norm(theta * (v != 0)) or 1.0) / norm(v))


def _allowed(difference: Difference, apart: float) -> Interval:
    """How far the truth may lie from a difference: known where it is settled, else possibly as far as `apart`."""
    allowed = 3 * difference.error + _SLACK * norm(difference.value)
    return exactly(allowed) if difference.settled else Interval(0.0, max(allowed, apart))
