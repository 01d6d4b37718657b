"""Are the products those of the loss's derivatives? Statements L, D, T and B, on random directions.

A direction v moves all parameters, or those of one layer; the product's answer is compared in all parameters, so that
mixed blocks count. What it is compared with comes from `reference.py`, by kernels that are not ours: torch's second
derivatives, to rounding, and differences of gradients, to the error that two steps show.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from analysis.central_difference import Difference, central_difference
from analysis.layer_blocks import LayerBlocks
from analysis.objective import loss_and_gradient
from analysis.operators import SymmetricOperator
from analysis.problem import Problem
from analysis.theory.reference import Reference
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
    stretch2 = reference.stretch2(v)
    known = _Known.along(reference, v, stretch2)
    yield from _first_derivatives(reference, pieces, v, known.floor)
    yield from known.checks("", hessian(problem)(v))
    by_torch = reference.gauss_newton_product(v)
    yield _equal("T (G)", "", gauss_newton(pieces)(v), by_torch, v, known.floor)
    H, blocks = hessian(pieces), LayerBlocks(pieces)
    places = positions(problem)
    for seed, (name, layer) in enumerate(blocks.layers.items(), start=2):
        progress(f"derivatives: {name}")
        own = torch.cat([places[full] for full in layer.parameters.values()])
        v = torch.zeros_like(v)
        v[own] = _normal(len(own), problem, seed)
        known = _Known.along(reference, v, stretch2)
        yield from known.checks(name, H(v))
        yield known.block_check(name, own, blocks({name: v[own][None]})[name][0])


@dataclass(frozen=True)
class _Known:
    """What the Hessian makes of a vector v (p,), by other ways than ours."""

    v: Tensor
    by_torch: Tensor  # (p,)
    curved: Difference  # (p,)
    floor: float  # the least norm against which rounding is judged

    @classmethod
    def along(cls, reference: Reference, v: Tensor, stretch2: float) -> "_Known":
        """Along `v`, which may be zero in some places; `stretch2` is mean |J_n|_F^2 in all parameters."""
        floor = LEAST_CURVATURE * reference.stretch2(v)
        return cls(v, reference.product(v), reference.curved(v, stretch2), floor)

    @property
    def trusted(self) -> bool:
        """Whether torch's product is not refuted by the differences, as that of its weight normalisation is."""
        apart = norm(self.by_torch - self.curved.value)
        return apart <= _allowed(self.curved, apart).high + self.floor

    def block_check(self, layer: str, own: Tensor, product: Tensor) -> Check:
        """B for the block's product (p_l,), `own` being the layer's places; by differences where torch is refuted."""
        if self.trusted:
            return _equal("B", layer, product, self.by_torch[own], self.v, self.floor)
        share, apart = _to_frobenius(self.v), norm(product - self.curved.value[own])
        return Check("B", layer, exactly(share * apart), _allowed(self.curved, apart).times(share), self.floor)

    def checks(self, layer: str, product: Tensor) -> Iterator[Check]:
        """D and T for our product."""
        share = _to_frobenius(self.v)
        apart = norm(product - self.curved.value)
        allowed = _allowed(self.curved, apart).times(share)
        yield Check("D", layer, exactly(share * apart), allowed, max(share * norm(self.curved.value), self.floor))
        yield _equal("T", layer, product, self.by_torch, self.v, self.floor, self.trusted)


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

    direction = (norm(theta) or 1.0) / norm(v) * v
    slope = central_difference(losses, theta, direction)
    apart = norm(torch.dot(gradient, direction) - slope.value)
    scale = max(norm(slope.value), abs(expected_loss), math.sqrt(reference.stretch2(direction)))
    yield Check("L", "", exactly(apart), _allowed(slope, apart), scale)


def _equal(
    statement: str, layer: str, product: Tensor, expected: Tensor, v: Tensor, floor: float, claimed: bool = True
) -> Check:
    """Two products of matrices with `v` are one; `floor` is the least norm against which rounding is judged."""
    difference, scale = _to_frobenius(v) * norm(product - expected), _to_frobenius(v) * norm(expected)
    return Check(statement, layer, exactly(difference), exactly(0.0), max(scale, floor), claimed)


def _to_frobenius(v: Tensor) -> float:
    """sqrt(p) / |v| of the p entries that are not zero: times |D v|, it has |D|_F as its root mean square."""
    return math.sqrt(torch.count_nonzero(v).item()) / norm(v)


def _allowed(difference: Difference, apart: float) -> Interval:
    """How far the truth may lie from a difference: known where it is settled, else possibly as far as `apart`."""
    allowed = 3 * difference.error + _SLACK * norm(difference.value)
    return exactly(allowed) if difference.settled else Interval(0.0, max(allowed, apart))
