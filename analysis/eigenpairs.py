"""Eigenvalues with their proof: residuals and the bounds that follow from them.

For a symmetric A, a unit vector v, theta = v^T A v and r = A v - theta v, some eigenvalue lambda has |lambda - theta|
<= |r|, and |lambda - theta| <= |r|^2 / gap where gap is the distance from theta to the rest of the spectrum (Parlett,
The Symmetric Eigenvalue Problem, theorems 4.5.1 and 11.7.1). Of the rest nothing is known from the search alone.
"""

import math
from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from analysis.errors import MeasurementError
from analysis.ieee import ieee
from analysis.vectors import combine, dots, quotients

Iteration = Generator[Tensor, Tensor, "Eigenpairs"]
"""Yields a block of rows (b, p), is sent the block times A, and returns eigenpairs: so that many can share one pass."""

PROBABILITY = 0.05
"""The most by which an eigenvalue among the wanted, if there is one, may have been missed by what has converged."""

_ROUNDINGS = 4.0  # that may add up between what a search takes for rounding and the pair it makes of it

Progress = Callable[[int, float], None]
"""Called with the number of products so far and the largest relative residual of the wanted pairs."""


@dataclass(frozen=True)
class Eigenpairs:
    """k approximate eigenpairs in the order asked for; never an exception, `converged` says how far to trust them."""

    values: Tensor  # (k,) float64, Rayleigh quotients
    vectors: Tensor  # (p, k) orthonormal columns
    residuals: Tensor  # (k,) float64, |A v - value v|, at least rounding: some eigenvalue is within this distance
    quadratic: Tensor  # (k,) float64, about |r|^2 / gap where a look bounds what is beside the pairs, else the residual
    converged: Tensor  # (k,) bool, relative residual within the tolerance, or vanishing; `missed` at most PROBABILITY
    rounded: Tensor  # (k,) bool, above the tolerance, but rounding in the products leaves no less
    missed: float  # bounds the probability that one beyond these by more than 2 tol was missed; 1: unknown
    confirmed: bool  # values and residuals are those of float64 products
    products: int  # products of A with a vector
    scale: float  # |A|, as far as the search saw it
    vanishing: Tensor | float = 0.0  # (k,), values that are no larger, residual included, count as converged too

    @property
    def finished(self) -> bool:
        """Whether more products could improve no residual that is above the tolerance."""
        return bool((self.converged | self.rounded).all())

    @property
    def relative_residuals(self) -> Tensor:
        """|A v - value v| / |value|, (k,) float64; zero where both are zero."""
        pairs = zip(self.residuals.tolist(), self.values.tolist(), strict=True)
        return torch.tensor([relative(r, x) for r, x in pairs], dtype=torch.float64)


def require_pairs(k: int) -> int:
    """k, the number of eigenpairs that are asked for; raises `MeasurementError` where it is none."""
    if k < 1:
        raise MeasurementError(f"k is a number of eigenpairs, 1 or more, not {k}.")
    return k


def relative(residual: float, value: float) -> float:
    """residual / |value|, zero where the residual is zero."""
    return 0.0 if residual == 0 else residual / abs(value) if value else math.inf


def is_finished(residual: float, value: float, scale: float, tol: float, dtype: torch.dtype) -> bool:
    """Whether the residual is at most tol |value|, or is rounding in a product with a matrix of norm `scale`."""
    return residual <= max(tol * abs(value), rounding(scale, dtype))


def vanish(residuals: Tensor, values: Tensor, most: Tensor | float) -> Tensor:
    """Where the eigenvalues within the residuals are `most` in magnitude at the most."""
    return residuals + values.abs() <= most


def rounding(scale: float, dtype: torch.dtype) -> float:
    """What rounding may do to a product with a matrix of norm `scale`."""
    return 8 * torch.finfo(dtype).eps * scale


def rayleigh_ritz(basis: Tensor, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Best eigenpairs in a subspace: orthonormal rows Q (m, p) and Q A -> values (m,) ascending, rows V and V A."""
    projected = dots(basis, images)
    values, rotation = torch.linalg.eigh((projected + projected.T) / 2)
    return values, combine(rotation.T, basis), combine(rotation.T, images)


def certified(
    vectors: Tensor, images: Iterable[Tensor], scale: float, tol: float, products: int, vanishing: Tensor | float = 0.0
) -> Eigenpairs:
    """Pairs from unit rows (k, p) and their products with A, k times (p,); A's norm is about `scale`, no gap is known.

    Values of at most `vanishing` in magnitude, residual included, have converged.
    """
    values, residuals = quotients(vectors, images)
    residuals = residuals.clamp(min=rounding(scale, vectors.dtype))
    converged = (residuals <= tol * values.abs()) | vanish(residuals, values, vanishing)
    return Eigenpairs(
        values=values,
        vectors=vectors.T,
        residuals=residuals,
        quadratic=residuals,
        converged=converged,
        rounded=~converged & (residuals <= _ROUNDINGS * rounding(scale, vectors.dtype)),
        missed=1.0,
        confirmed=vectors.dtype == torch.float64,
        products=products,
        scale=scale,
        vanishing=vanishing,
    )


def carried(pairs: Eigenpairs, lost: float, tol: float) -> Eigenpairs:
    """The pairs where rounding may have taken the share `lost` of A itself, which no residual shows.

    Where that is more than a tenth of the tolerance, it counts as what an eigenvalue is exact to: `rounded`.
    """
    least = lost * pairs.scale
    residuals = pairs.residuals.clamp(min=least)
    spoiled = (least > 0.1 * tol * pairs.values.abs()) & ~vanish(residuals, pairs.values, pairs.vanishing)
    return replace(
        pairs,
        residuals=residuals,
        quadratic=pairs.quadratic.clamp(min=least),
        converged=pairs.converged & ~spoiled,
        rounded=pairs.rounded | (pairs.converged & spoiled),
    )


def judged(pairs: Eigenpairs, missed: float, products: int, reach: Tensor | None = None) -> Eigenpairs:
    """The pairs with the bound on what was missed, and where that is small, with `reach` (k,) as a bound on the error.

    Where it is not small, none has converged.
    """
    if missed <= PROBABILITY:
        least = torch.finfo(pairs.vectors.dtype).eps * pairs.values.abs().max()
        quadratic = pairs.residuals if reach is None else torch.minimum(pairs.residuals, reach.clamp(min=least))
        return replace(pairs, missed=missed, products=products, quadratic=quadratic)
    none = torch.zeros_like(pairs.converged)
    return replace(pairs, missed=min(missed, 1.0), products=products, converged=none, rounded=none)


@ieee()  # once: to ask for it costs a small vector's inner product many times its time
def drive(iteration: Iteration, product: Callable[[Tensor], Tensor]) -> Eigenpairs:
    """Run an iteration on one operator, `product` taking rows (b, p)."""
    try:
        rows = next(iteration)
        while True:
            rows = iteration.send(product(rows))
    except StopIteration as stop:
        result: Eigenpairs = stop.value
        return result


@ieee()
def drive_together(
    iterations: Mapping[str, Iteration], products: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]
) -> dict[str, Eigenpairs]:
    """Run several iterations in step, so that one pass over the data serves all that still go on."""
    asked = {name: next(iteration) for name, iteration in iterations.items()}
    found: dict[str, Eigenpairs] = {}
    while asked:
        images = products(asked)
        asked = {}
        for name, image in images.items():
            try:
                asked[name] = iterations[name].send(image)
            except StopIteration as stop:
                found[name] = stop.value
    return {name: found[name] for name in iterations}
