"""What `flatlab density` computes: how the Hessian's eigenvalues are distributed."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from analysis.density import SpectralDensity, spectral_density
from analysis.operators import hessian
from analysis.problem import Problem
from analysis.trace import mean_of
from flatlab.tell import Tell, silent


@dataclass(frozen=True)
class Quadrature:
    """How much work goes into the density."""

    depth: int = 40  # products per probe
    probes: int = 5


def density_numbers(problem: Problem, quadrature: Quadrature, tell: Tell = silent) -> dict[str, Any]:
    """The smoothed density with its standard errors, the quadrature it comes from, and what that says of the whole."""
    total = quadrature.depth * quadrature.probes
    density = spectral_density(
        hessian(problem),
        depth=quadrature.depth,
        probes=quadrature.probes,
        progress=lambda products: tell(f"{products} of {total} products"),
    )
    return {
        "grid": density.grid.tolist(),
        "density": density.density.tolist(),
        "standard_error": density.standard_error.tolist(),
        "sigma": density.sigma,
        "size": density.size,
        "nodes": [nodes.tolist() for nodes in density.nodes],
        "weights": [weights.tolist() for weights in density.weights],
        "lowest": min(nodes[0].item() for nodes in density.nodes),
        "highest": max(nodes[-1].item() for nodes in density.nodes),
        "shares": {
            "negative": _mean(density, lambda x: x < -2 * density.sigma),
            "zero": _mean(density, lambda x: x.abs() <= 2 * density.sigma),
            "positive": _mean(density, lambda x: x > 2 * density.sigma),
        },
        "trace": _mean(density, lambda x: density.size * x),
        "hvps": density.products,
    }


def _mean(density: SpectralDensity, f: Callable[[Tensor], Tensor]) -> dict[str, float]:
    """The mean of f over the eigenvalues, with its standard error over the probes."""
    pairs = zip(density.nodes, density.weights, strict=True)
    return vars(mean_of([(weights * f(nodes)).sum().item() for nodes, weights in pairs]))
