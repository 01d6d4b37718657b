"""`flatlab surface`: the loss on a line or a plane through the parameters."""

from collections.abc import Sequence
from typing import Annotated, Any

import typer

from flatlab.cli.eigs_table import eigenvalue_heading, shown, warn_unless_converged
from flatlab.cli.options import Given, choice, measuring
from flatlab.cli.pictures import save_picture
from flatlab.cli.side_by_side import Cell, Row, loss_name, mark, number_cell, print_side_by_side
from flatlab.errors import UsageError
from flatlab.terminal.console import console


@measuring
def surface(
    given: Given,
    along: Annotated[
        str,
        choice("random", "eigenvectors", help="Filter-normalised directions, or the top eigenvectors."),
    ] = "random",
    line: Annotated[bool, typer.Option("--line", help="Along one direction instead of two.")] = False,
    extent: Annotated[float, typer.Option(help="How far to go either way, in multiples of the direction.")] = 1.0,
    points: Annotated[int, typer.Option(min=2, max=1000, help="Points along each direction.")] = 21,
    seed: Annotated[
        int | None, typer.Option(min=0, max=2**63 - 1, help="Of the random directions.", show_default="0")
    ] = None,
) -> None:
    """Evaluate the loss around the model along one or two directions; several checkpoints share random directions.

    A filter-normalised direction has in each filter the norm of the model's own, so that models of different scale can
    be compared. Along a unit eigenvector the curvature at the model is the eigenvalue.
    """
    from flatlab.cli.sweep import measure
    from flatlab.measuring.surface import measure_surface, read_section

    if seed is not None and along == "eigenvectors":
        raise UsageError("--seed is of random directions, and eigenvectors have none: leave one of them out.")
    measurement, section = given.measurement(), read_section(along, line, extent, points, seed or 0)

    def present(results: Sequence[dict[str, Any]]) -> None:
        title = f"{loss_name(results[0])[4:].capitalize()}, around the model, along {results[0]['directions']}"
        rows = _rows_of_a_line(results) if line else _rows_of_a_plane(results)
        print_side_by_side(title, "", "loss", rows, results)
        _print_directions(results)
        if given.figure is not None:
            from figures.loss_line import draw_loss_lines
            from figures.loss_surface import draw_loss_surfaces

            save_picture(draw_loss_lines if line else draw_loss_surfaces, results, given.figure)

    measure(
        "surface",
        given.paths,
        measurement,
        vars(section),
        lambda subject, tell: measure_surface(subject.problem, section, tell),
        present,
        given.json,
        given.figure,
        products=section.products,
    )


def _print_directions(results: Sequence[dict[str, Any]]) -> None:
    """The eigenvalues of the eigenvectors that the loss was looked at along."""
    found = [
        (number, result["eigenvalues"]) for number, result in enumerate(results, start=1) if "eigenvalues" in result
    ]
    for number, values in found:
        which = f"{mark(number, results).strip()} {eigenvalue_heading(len(values))}".strip()
        console.print(f"{which}: {', '.join(shown(values).splitlines())}", markup=False, highlight=False)
    every = [value for _, values in found for value in values]
    warn_unless_converged(every, results[0]["settings"]["dtype"], adjustable=False)


def _rows_of_a_line(results: Sequence[dict[str, Any]]) -> list[Row]:
    """Five places along the line."""
    last = len(results[0]["a"]) - 1
    places = sorted({round(quarter * last / 4) for quarter in range(5)})
    return [
        (f"at {results[0]['a'][i]:+.3g}", [number_cell(result["losses"][i][0]) for result in results]) for i in places
    ]


def _rows_of_a_plane(results: Sequence[dict[str, Any]]) -> list[Row]:
    """The model, the extremes, and the rim of the square."""
    every = [[loss for line in result["losses"] for loss in line] for result in results]
    finite = [[loss for loss in losses if loss is not None] for losses in every]
    rims = [
        [*losses[0], *losses[-1], *(loss for line in losses[1:-1] for loss in (line[0], line[-1]))]
        for losses in (result["losses"] for result in results)
    ]
    rows: list[Row] = [
        ("at the model", [number_cell(result["loss"]) for result in results]),
        ("lowest", [number_cell(min(losses, default=None)) for losses in finite]),
        ("highest", [number_cell(max(losses, default=None)) for losses in finite]),
        ("mean at the rim", [number_cell(None if None in rim else sum(rim) / len(rim)) for rim in rims]),
    ]
    if finite != every:
        left_out = [len(losses) - len(kept) for losses, kept in zip(every, finite, strict=True)]
        rows.append(("points not finite", [Cell(str(count)) for count in left_out]))
    return rows
