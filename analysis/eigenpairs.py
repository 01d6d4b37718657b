"""Eigenvalues with their proof: residuals and the bounds that follow from them.

For a symmetric A, a unit vector v, theta = v^T A v and r = A v - theta v, some eigenvalue lambda has |lambda - theta|
<= |r|, and |lambda - theta| <= |r|^2 / gap where gap is the distance from theta to the rest of the spectrum (Parlett,
The Symmetric Eigenvalue Problem, theorems 4.5.1 and 11.7.1).
"""

import math
from collections.abc import Callable, Generator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from analysis.vectors import combine, dots, quotients

Iteration = Generator[Tensor, Tensor, "Eigenpairs"]
"""Yields a block of rows (b, p), is sent the block times A, and returns eigenpairs: so that many can share one pass."""

PROBABILITY = 0.05
"""The most by which an eigenvalue among the wanted, if there is one, may have been missed by what has converged."""

_ROUNDINGS = 4.0  # that may add up between what a search takes for rounding and the pair it makes of it
_BERTH = 4.0  # times its residual that a neighbour is kept away from: unresolved, it may stand for several eigenvalues

Progress = Callable[[int, float], None]
"""Called with the number of products so far and the largest relative residual of the wanted pairs."""


@dataclass(frozen=True)
class Eigenpairs:
    """k approximate eigenpairs in the order asked for; never an exception, `converged` says how far to trust them."""

    values: Tensor  # (k,) float64, Rayleigh quotients
    vectors: Tensor  # (p, k) orthonormal columns
    residuals: Tensor  # (k,) float64, |A v - value v|, at least rounding: some eigenvalue is within this distance
    quadratic: Tensor  # (k,) float64, |r|^2 / gap where that is known and `missed` is small, else the residual
    converged: Tensor  # (k,) bool, relative residual at most the tolerance, and `missed` at most PROBABILITY
    rounded: Tensor  # (k,) bool, above the tolerance, but rounding in the products leaves no less
    missed: float  # bounds the probability that one beyond these by more than 2 tol was missed; 1: unknown
    confirmed: bool  # values and residuals are those of float64 products
    products: int  # products of A with a vector

    @property
    def finished(self) -> bool:
        """Whether more products could improve no residual that is above the tolerance."""
        return bool((self.converged | self.rounded).all())

    @property
    def relative_residuals(self) -> Tensor:
        """|A v - value v| / |value|, (k,) float64; zero where both are zero."""
        pairs = zip(self.residuals.tolist(), self.values.tolist(), strict=True)
        return torch.tensor([relative(r, x) for r, x in pairs], dtype=torch.float64)


def relative(residual: float, value: float) -> float:
    """residual / |value|, zero where the residual is zero."""
    return 0.0 if residual == 0 else residual / abs(value) if value else math.inf


def is_finished(residual: float, value: float, scale: float, tol: float, dtype: torch.dtype) -> bool:
    """Whether the residual is at most tol |value|, or is rounding in a product with a matrix of norm `scale`."""
    return residual <= max(tol * abs(value), rounding(scale, dtype))


def rounding(scale: float, dtype: torch.dtype) -> float:
    """What rounding may do to a product with a matrix of norm `scale`."""
    return 8 * torch.finfo(dtype).eps * scale


def rayleigh_ritz(basis: Tensor, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Best eigenpairs in a subspace: orthonormal rows Q (m, p) and Q A -> values (m,) ascending, rows V and V A."""
    projected = dots(basis, images)
    values, rotation = torch.linalg.eigh((projected + projected.T) / 2)
    return values, combine(rotation.T, basis), combine(rotation.T, images)


def certified(
    vectors: Tensor,
    images: Tensor,
    scale: float,
    tol: float,
    products: int,
    others: tuple[Tensor, Tensor] | None = None,
) -> Eigenpairs:
    """Pairs from unit rows (k, p) and their products with A, whose norm is about `scale`.

    `others`, the remaining Ritz values with their residuals, give the gaps of the quadratic bound. It assumes that no
    eigenvalue beside a pair was missed (two that are closer than the residual look like one); below rounding no bound
    is claimed.
    """
    values, residuals = quotients(vectors, images)
    residuals = residuals.clamp(min=rounding(scale, vectors.dtype))
    converged = residuals <= tol * values.abs()
    return Eigenpairs(
        values=values,
        vectors=vectors.T,
        residuals=residuals,
        quadratic=_quadratic_bound(values, residuals, others).clamp(min=torch.finfo(vectors.dtype).eps * scale),
        converged=converged,
        rounded=~converged & (residuals <= _ROUNDINGS * rounding(scale, vectors.dtype)),
        missed=1.0,
        confirmed=vectors.dtype == torch.float64,
        products=products,
    )


def judged(pairs: Eigenpairs, missed: float, products: int) -> Eigenpairs:
    """The pairs with the bound on what was missed; where that is not small, none has converged, nor has a gap."""
    if missed <= PROBABILITY:
        return replace(pairs, missed=missed, products=products)
    none = torch.zeros_like(pairs.converged)
    return replace(
        pairs, missed=min(missed, 1.0), products=products, converged=none, rounded=none, quadratic=pairs.residuals
    )


def _quadratic_bound(values: Tensor, residuals: Tensor, others: tuple[Tensor, Tensor] | None) -> Tensor:
    """|r|^2 / gap where the gap is known and exceeds |r|, else |r|; (k,)."""
    if others is None:
        return residuals
    neighbours, reach = torch.cat([values, others[0]]), torch.cat([residuals, others[1]])
    distances = (neighbours - values[:, None]).abs() - _BERTH * reach
    distances.fill_diagonal_(torch.inf)
    gaps = distances.min(dim=1).values
    return torch.where(gaps > residuals, residuals**2 / gaps, residuals)


def drive(iteration: Iteration, product: Callable[[Tensor], Tensor]) -> Eigenpairs:
    """Run an iteration on one operator, `product` taking rows (b, p)."""
    try:
        rows = next(iteration)
        while True:
            rows = iteration.send(product(rows))
    except StopIteration as stop:
        result: Eigenpairs = stop.value
        return result
