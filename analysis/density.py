"""The density of the eigenvalues by stochastic Lanczos quadrature.

For a random unit vector z, Lanczos from z gives T_m whose eigenvalues theta_i, with weights tau_i = (first component of
the i-th eigenvector of T)^2, are a Gauss quadrature of the spectral measure of z: sum_i tau_i f(theta_i) = z^T f(A) z
exactly for polynomials f up to degree 2 m - 1. The mean over z is tr f(A) / p (Golub and Welsch 1969; Lin, Saad and
Yang 2016; Ghorbani, Krishnan and Xiao 2019). Full reorthogonalisation keeps copies of found eigenvalues out of the
weights.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from analysis.confirmation import lost_to_rounding
from analysis.errors import MeasurementError
from analysis.operators import SymmetricOperator
from analysis.recurrence import tridiagonal
from analysis.vectors import norm, random_rows

_MOST_POINTS = 200_000
_WIDTH_OF_ZEROS = 1e-12


@dataclass(frozen=True)
class SpectralDensity:
    """Weighted points, smoothed by normal curves of width `sigma` into a `density` that integrates to one."""

    grid: Tensor  # (n,) float64
    density: Tensor  # (n,) float64
    standard_error: Tensor  # (n,) float64, over the probes
    nodes: tuple[Tensor, ...]  # per probe (m,) Ritz values, ascending
    weights: tuple[Tensor, ...]  # per probe (m,), sum one
    sigma: float
    size: int  # p
    products: int
    rounding: float  # the share of A that rounding takes, as one product in float64 shows it

    def mean_of(self, f: Callable[[Tensor], Tensor]) -> float:
        """The mean of f over the eigenvalues, tr f(A) / p."""
        return math.fsum(self.means_of(f)) / len(self.nodes)

    def means_of(self, f: Callable[[Tensor], Tensor]) -> list[float]:
        """What each of the probes says of it."""
        return [(w * f(x)).sum().item() for x, w in zip(self.nodes, self.weights, strict=True)]


def spectral_density(
    operator: SymmetricOperator,
    *,
    depth: int = 40,
    probes: int = 5,
    points: int = 400,
    sigma: float | None = None,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> SpectralDensity:
    """Estimate the density from `probes` random vectors with `depth` products each.

    `sigma` defaults to 1 % of the spectrum's extent; the grid has at least `points`, and as many more as it takes to
    resolve `sigma`. `progress` is told the products so far. Raises `MeasurementError` for a sigma too small for that.

    >>> import torch
    >>> from analysis.density import spectral_density
    >>> from analysis.operators import matrix_operator
    >>> A = matrix_operator(torch.diag(torch.tensor([5.0, 3.0, 1.0])))
    >>> found = spectral_density(A, depth=3, probes=20)
    >>> [round(node, 4) for node in found.nodes[0].tolist()]
    [1.0, 3.0, 5.0]
    >>> bool(abs(torch.trapezoid(found.density, found.grid) - 1) < 1e-3)
    True
    """
    generator = torch.Generator().manual_seed(seed)
    like = torch.empty(0, dtype=operator.torch_dtype, device=operator.device)
    nodes, weights, products = [], [], 0
    for _ in range(probes):
        start = random_rows(1, operator.size, like, generator)
        projected = tridiagonal(operator, start[0], min(depth, operator.size), generator)
        values, s = torch.linalg.eigh(projected)
        nodes.append(values.cpu())
        weights.append(s[0].square().cpu())
        products += len(values)
        if progress:
            progress(products)
    low, high = min(x[0].item() for x in nodes), max(x[-1].item() for x in nodes)
    width = sigma if sigma is not None else _width(low, high)
    if not (high - low) / _MOST_POINTS * 2 < width < math.inf:
        raise MeasurementError(
            f"A density over {low:.4g} to {high:.4g} cannot be drawn with sigma {width:g}; take more than "
            f"{2 * (high - low) / _MOST_POINTS:.2g}, or leave it out."
        )
    needed = math.ceil(2 * (high - low + 10 * width) / width) + 1  # a normal curve is summed right at half its sigma
    grid = torch.linspace(low - 5 * width, high + 5 * width, max(points, needed), dtype=torch.float64)
    curves = torch.stack([_smoothed(grid, x, w, width) for x, w in zip(nodes, weights, strict=True)])
    return SpectralDensity(
        grid=grid,
        density=curves.mean(0),
        standard_error=curves.std(0) / math.sqrt(probes) if probes > 1 else torch.full_like(grid, torch.inf),
        nodes=tuple(nodes),
        weights=tuple(weights),
        sigma=width,
        size=operator.size,
        products=products + (2 if operator.exact else 0),
        rounding=operator.lost + (_rounding(operator, start[0]) if operator.exact else 0.0),
    )


def _rounding(operator: SymmetricOperator, vector: Tensor) -> float:
    """|error of A v| / |A v|, against the product in float64."""
    image = operator(vector).double()
    error = lost_to_rounding(operator.exact, vector, image)
    return norm(error) / norm(image + error) if error.any() else 0.0


def _width(low: float, high: float) -> float:
    """A width for a spectrum from `low` to `high`, in its unit; of nothing but zeros, which has none, any will do."""
    return max(0.01 * (high - low), 1e-3 * max(abs(low), abs(high))) or _WIDTH_OF_ZEROS


def _smoothed(grid: Tensor, nodes: Tensor, weights: Tensor, sigma: float) -> Tensor:
    """sum_i weights_i N(grid; nodes_i, sigma^2)."""
    bells = torch.exp(-(((grid[:, None] - nodes) / sigma) ** 2) / 2) / (sigma * math.sqrt(2 * math.pi))
    return bells @ weights
