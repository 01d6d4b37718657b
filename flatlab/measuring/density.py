"""What `flatlab density` does: how the Hessian's eigenvalues are distributed."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from analysis.density import SpectralDensity, spectral_density
from analysis.operators import hessian
from analysis.problem import Problem
from analysis.trace import mean_of
from flatlab.cli.console import console
from flatlab.measuring.pictures import save_picture
from flatlab.measuring.running import Tell, measure, silent
from flatlab.measuring.subjects import Measurement, Subject
from flatlab.measuring.tables import Cell, Row, loss_name, print_side_by_side
from flatlab.measuring.trace import estimate_cell


@dataclass(frozen=True)
class Quadrature:
    """How much work goes into the density."""

    depth: int = 40  # products per probe
    probes: int = 5


def density_run(
    paths: Sequence[Path],
    measurement: Measurement,
    quadrature: Quadrature,
    figure: Path | None = None,
    json: Path | None = None,
) -> None:
    """Estimate densities, print what they say in numbers, write and draw them."""

    def work(subject: Subject, tell: Tell) -> dict[str, Any]:
        return density_numbers(subject.problem, quadrature, tell)

    results = measure("density", paths, measurement, work, json)
    rows: list[Row] = [
        ("lowest found", [Cell(f"{result['lowest']:.4g}", result["lowest"]) for result in results]),
        ("highest found", [Cell(f"{result['highest']:.4g}", result["highest"]) for result in results]),
        ("share below -2σ", [_share(result["shares"]["negative"]) for result in results]),
        ("share within 2σ of 0", [_share(result["shares"]["zero"]) for result in results]),
        ("share above 2σ", [_share(result["shares"]["positive"]) for result in results]),
        ("trace", [estimate_cell(result["trace"]) for result in results]),
        ("parameters", [Cell(f"{result['size']:,}") for result in results]),
        ("σ of the smoothing", [Cell(f"{result['sigma']:.2g}") for result in results]),
    ]
    title = f"Eigenvalues of the Hessian of {loss_name(results[0])}"
    print_side_by_side(title, "", "value", rows, results)
    console.print("± is the standard error over the probes; lowest and highest lie inside the spectrum.")
    if figure is not None:
        from figures.spectral_density import draw_densities

        save_picture(draw_densities, results, figure)


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


def _share(estimate: dict[str, float]) -> Cell:
    return Cell(f"{estimate['value']:.2%} ± {estimate['standard_error']:.1%}", estimate["value"])
