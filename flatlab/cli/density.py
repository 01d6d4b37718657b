"""`flatlab density`: how the eigenvalues of the Hessian are distributed."""

from collections.abc import Sequence
from typing import Annotated, Any

import typer

from flatlab.cli.console import console
from flatlab.cli.options import Given, measuring
from flatlab.cli.pictures import save_picture
from flatlab.cli.side_by_side import Cell, Row, estimate_cell, loss_name, print_side_by_side


@measuring
def density(
    given: Given,
    depth: Annotated[int, typer.Option(min=2, max=10_000, help="Products per random vector.")] = 40,
    probes: Annotated[int, typer.Option(min=1, max=100_000, help="Random vectors; two or more give errors.")] = 5,
) -> None:
    """Estimate the density of all eigenvalues of the Hessian by stochastic Lanczos quadrature.

    Prints what it says in numbers: the extent of the spectrum, the shares of negative, vanishing and positive
    eigenvalues, and the trace; the curve itself is in the JSON and in the figure.
    """
    from flatlab.cli.sweep import measure
    from flatlab.measuring.density import Quadrature, measure_density

    quadrature = Quadrature(depth, probes)

    def present(results: Sequence[dict[str, Any]]) -> None:
        print_density(results)
        if given.figure is not None:
            from figures.spectral_density import draw_densities

            save_picture(draw_densities, results, given.figure)

    measure(
        "density",
        given.paths,
        given.measurement(),
        vars(quadrature),
        lambda subject, tell: measure_density(subject.problem, quadrature, tell),
        present,
        given.json,
        given.figure,
        products=quadrature.products,
    )


def print_density(results: Sequence[dict[str, Any]]) -> None:
    """What the density says in numbers."""
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
    print_side_by_side(f"Eigenvalues of the Hessian of {loss_name(results[0])}", "", "value", rows, results)
    console.print("± is the standard error over the probes; lowest and highest lie inside the spectrum.")


def _share(estimate: dict[str, float]) -> Cell:
    return Cell(f"{estimate['value']:.2%} ± {estimate['standard_error']:.1%}", estimate["value"])
