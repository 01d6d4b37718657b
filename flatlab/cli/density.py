"""`flatlab density`: how the eigenvalues of the Hessian, or another matrix, are distributed."""

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

import typer

from figures.captions import matrix_name
from figures.decimals import readable
from figures.labels import block_label
from flatlab.cli.options import MATRIX, Given, measuring
from flatlab.cli.pictures import save_picture
from flatlab.cli.side_by_side import Cell, Row, estimate_cell, give_or_take, loss_name, print_side_by_side
from flatlab.terminal.console import console


@measuring
def density(
    given: Given,
    depth: Annotated[int, typer.Option(min=2, max=10_000, help="Products per random vector.")] = 40,
    probes: Annotated[int, typer.Option(min=1, max=100_000, help="Random vectors; two or more give errors.")] = 5,
    layers: Annotated[bool, typer.Option("--layers", help="Each layer's block too, and a panel for each.")] = False,
    matrix: Annotated[str, MATRIX] = "hessian",
) -> None:
    """Estimate the density of all eigenvalues of the Hessian by stochastic Lanczos quadrature.

    Prints what it says in numbers: the extent of the spectrum, the shares of negative, vanishing and positive
    eigenvalues, and the trace; the curve itself is in the JSON and in the figure.
    """
    from flatlab.cli.sweep import measure
    from flatlab.measuring.density import Quadrature, measure_density
    from flatlab.measuring.matrices import read_matrix

    quadrature = Quadrature(depth, probes, read_matrix(matrix), layers)

    def present(results: Sequence[dict[str, Any]]) -> None:
        print_density(results)
        if given.figure is not None:
            from figures.layer_densities import draw_layer_densities
            from figures.spectral_density import draw_densities

            save_picture(draw_layer_densities if layers else draw_densities, results, given.figure)

    measure(
        quadrature.kind,
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
    """What the density says in numbers, of the network and of the layers that were asked for."""
    rows = _rows(results)
    for name in dict.fromkeys(layer["name"] for result in results for layer in result.get("layers", [])):
        found = [next((own for own in result["layers"] if own["name"] == name), None) for result in results]
        rows += [(f"{block_label(name)}: {label}", cells) for label, cells in _rows(found) if label in _OF_LAYERS]
    title = f"Eigenvalues of the {matrix_name(results[0])} of {loss_name(results[0])}"
    print_side_by_side(title, "", "value", rows, results)
    console.print("± is the standard error over the probes; lowest and highest lie inside the spectrum.")
    rounding = max(one["rounding"] for result in results for one in (result, *result.get("layers", [])))
    if rounding > _VISIBLE:
        remedy = "; measure in float64" if results[0]["settings"]["dtype"] == "float32" else ""
        console.print(f"Rounding takes {rounding:.2g} of the products here, and as much of every number{remedy}.")


def _rows(found: Sequence[Mapping[str, Any] | None]) -> list[Row]:
    """The lines on one matrix of every subject; None where a subject has it not."""
    return [(label, [None if one is None else cell(one) for one in found]) for label, cell in _LINES.items()]


def _share(estimate: dict[str, float]) -> Cell:
    value, error = estimate["value"], estimate["standard_error"]
    places = readable(100 * (error or 0.0), 100 * value, 2)
    return Cell(f"{value:.{places}%}{give_or_take(error, f'.{places}%')}", value)


_LINES: Mapping[str, Callable[[Mapping[str, Any]], Cell | None]] = {
    "lowest found": lambda one: Cell(f"{one['lowest']:.4g}", one["lowest"]),
    "highest found": lambda one: Cell(f"{one['highest']:.4g}", one["highest"]),
    "share below -2σ": lambda one: _share(one["shares"]["negative"]),
    "share within 2σ of 0": lambda one: _share(one["shares"]["zero"]),
    "share above 2σ": lambda one: _share(one["shares"]["positive"]),
    "trace": lambda one: estimate_cell(one["trace"]),
    "parameters": lambda one: Cell(f"{one['size']:,}"),
    "σ of the smoothing": lambda one: Cell(f"{one['sigma']:.2g}"),
}
"""What is printed of a density."""

_VISIBLE = 0.01
"""The share of the products from which on rounding is said: less is lost in smoothing, by a hundredth of the extent."""

_OF_LAYERS = ("lowest found", "highest found", "share above 2σ", "trace")
"""What of it is printed of a layer; all of it is in the JSON."""
