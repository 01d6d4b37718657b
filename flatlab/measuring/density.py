"""What `flatlab density` computes: how the Hessian's eigenvalues are distributed."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from analysis.density import SpectralDensity, spectral_density
from analysis.operators import hessian
from analysis.problem import Problem
from analysis.trace import Estimate, mean_of
from flatlab.errors import require_count
from flatlab.measuring.result import Result
from flatlab.tell import Tell, silent

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Quadrature:
    """How much work goes into the density. Raises `UsageError` for too little."""

    depth: int = 40  # products per probe
    probes: int = 5

    @property
    def products(self) -> float:
        """How many Hessian products it takes."""
        return self.depth * self.probes

    def __post_init__(self) -> None:
        require_count("depth", self.depth, 2)
        require_count("probes", self.probes)


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class DensityResult(Result):
    """How the eigenvalues of a Hessian are distributed, by stochastic Lanczos quadrature."""

    title: ClassVar[str] = "Density of the Hessian's eigenvalues"

    curve: SpectralDensity  # grid, density and standard error, each (n,), and the quadrature they come from

    @property
    def lowest(self) -> float:
        """The lowest Ritz value, which is not below the lowest eigenvalue."""
        return min(nodes[0].item() for nodes in self.curve.nodes)

    @property
    def highest(self) -> float:
        """The highest Ritz value, which is not above the highest eigenvalue."""
        return max(nodes[-1].item() for nodes in self.curve.nodes)

    @property
    def shares(self) -> dict[str, Estimate]:
        """The shares of eigenvalues below -2 sigma, within 2 sigma of zero, and above 2 sigma."""
        bound = 2 * self.curve.sigma
        return {
            "negative": _mean(self.curve, lambda x: x < -bound),
            "zero": _mean(self.curve, lambda x: x.abs() <= bound),
            "positive": _mean(self.curve, lambda x: x > bound),
        }

    @property
    def trace(self) -> Estimate:
        """The trace of the Hessian."""
        return _mean(self.curve, lambda x: self.curve.size * x)

    def numbers(self) -> dict[str, Any]:
        """The smoothed density, the quadrature it comes from, and what that says of the whole."""
        curve = self.curve
        return {
            "grid": curve.grid.tolist(),
            "density": curve.density.tolist(),
            "standard_error": curve.standard_error.tolist(),
            "sigma": curve.sigma,
            "size": curve.size,
            "nodes": [nodes.tolist() for nodes in curve.nodes],
            "weights": [weights.tolist() for weights in curve.weights],
            "lowest": self.lowest,
            "highest": self.highest,
            "shares": {name: vars(share) for name, share in self.shares.items()},
            "trace": vars(self.trace),
            "hvps": curve.products,
        }

    def rows(self) -> list[dict[str, Any]]:
        """The curve, one row per point of the grid."""
        columns = (self.curve.grid.tolist(), self.curve.density.tolist(), self.curve.standard_error.tolist())
        names = ("eigenvalue", "density", "standard_error")
        return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]

    def summary(self) -> list[dict[str, Any]]:
        """The extent of the spectrum, the shares of its parts, and the trace."""
        shares = {f"share {name}": share for name, share in self.shares.items()}
        return [
            {"quantity": "lowest found", "value": self.lowest, "standard_error": math.nan},
            {"quantity": "highest found", "value": self.highest, "standard_error": math.nan},
            *({"quantity": name, **vars(one)} for name, one in {**shares, "trace": self.trace}.items()),
        ]

    def plot(self) -> "Figure":
        """The density on a logarithmic axis."""
        from figures.spectral_density import draw_densities

        return draw_densities([self.to_dict()]).figure


def measure_density(problem: Problem, quadrature: Quadrature, tell: Tell = silent) -> DensityResult:
    """Estimate the density with its standard errors over the probes."""
    total = quadrature.depth * quadrature.probes
    curve = spectral_density(
        hessian(problem),
        depth=quadrature.depth,
        probes=quadrature.probes,
        progress=lambda products: tell(f"{products} of {total} products"),
    )
    return DensityResult(curve=curve)


def _mean(density: SpectralDensity, f: Callable[[Tensor], Tensor]) -> Estimate:
    """The mean of f over the eigenvalues, with its standard error over the probes."""
    pairs = zip(density.nodes, density.weights, strict=True)
    return mean_of([(weights * f(nodes)).sum().item() for nodes, weights in pairs])
