"""What `flatlab surface` does: the loss on a line or a plane through the parameters."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from analysis.objective import loss_at
from analysis.problem import Problem
from analysis.spectrum import eigs
from analysis.surface import filter_normalised_directions, loss_surface
from flatlab.errors import UsageError
from flatlab.measuring.eigs import plain_eigenvalue
from flatlab.measuring.pictures import save_picture
from flatlab.measuring.running import Tell, measure, silent
from flatlab.measuring.subjects import Measurement, Subject
from flatlab.measuring.tables import Cell, Row, loss_name, print_side_by_side

Along = Literal["random", "eigenvectors"]


@dataclass(frozen=True)
class Section:
    """Where the loss is looked at."""

    along: Along = "random"
    dimensions: int = 2  # 1: a line
    extent: float = 1.0  # multiples of the directions, on either side
    points: int = 21  # along each direction
    seed: int = 0  # of random directions


def read_section(along: str, line: bool, extent: float, points: int, seed: int) -> Section:
    """Raises `UsageError` for directions or an extent that are none."""
    if along not in ("random", "eigenvectors"):
        raise UsageError(f"--along is random or eigenvectors, not {along!r}.")
    if not 0 < extent < float("inf"):
        raise UsageError(f"--extent is a positive number, not {extent:g}.")
    return Section(along, 1 if line else 2, extent, points, seed)  # type: ignore[arg-type]


def surface_run(
    paths: Sequence[Path],
    measurement: Measurement,
    section: Section,
    figure: Path | None = None,
    json: Path | None = None,
) -> None:
    """Evaluate the loss around every subject, print what stands out, write and draw it all."""

    def work(subject: Subject, tell: Tell) -> dict[str, Any]:
        return surface_numbers(subject.problem, section, tell)

    results = measure("surface", paths, measurement, work, json)
    title = f"{loss_name(results[0])[4:].capitalize()}, around the model, along {results[0]['directions']}"
    rows = _rows_of_a_line(results) if section.dimensions == 1 else _rows_of_a_plane(results)
    print_side_by_side(title, "", "loss", rows, results)
    if figure is not None:
        from figures.loss_line import draw_loss_lines
        from figures.loss_surface import draw_loss_surfaces

        save_picture(draw_loss_lines if section.dimensions == 1 else draw_loss_surfaces, results, figure)


def surface_numbers(problem: Problem, section: Section, tell: Tell = silent) -> dict[str, Any]:
    """Losses on the grid, at the model itself, and what the directions are."""
    directions, about = _directions(problem, section, tell)
    surface = loss_surface(
        problem,
        directions,
        extent=section.extent,
        points=section.points,
        progress=lambda done, total: tell(f"{done} of {total} points"),
    )
    return {
        **about,
        "loss": loss_at(problem, problem.point()),
        "a": surface.a.tolist(),
        "b": surface.b.tolist(),
        "losses": surface.losses.tolist(),
    }


def _directions(problem: Problem, section: Section, tell: Tell) -> tuple[Tensor, dict[str, Any]]:
    if section.along == "random":
        directions = filter_normalised_directions(problem, section.dimensions, seed=section.seed)
        return directions, {"directions": f"filter-normalised random directions, seed {section.seed}"}
    report = eigs(
        problem,
        section.dimensions,
        layers=[],
        progress=lambda _, products, residual: tell(f"eigenvectors: {products} products, residual {residual:.1e}"),
    )
    values = [plain_eigenvalue(value) for value in report.eigenvalues]
    return report.vectors, {"directions": "unit top eigenvectors", "eigenvalues": values, "hvps": report.products}


def _rows_of_a_line(results: Sequence[dict[str, Any]]) -> list[Row]:
    """Five places along the line."""
    last = len(results[0]["a"]) - 1
    places = sorted({round(quarter * last / 4) for quarter in range(5)})
    return [(f"at {results[0]['a'][i]:+.3g}", [_number(result["losses"][i][0]) for result in results]) for i in places]


def _rows_of_a_plane(results: Sequence[dict[str, Any]]) -> list[Row]:
    """The model, the extremes, and the rim of the square."""
    every = [[loss for line in result["losses"] for loss in line] for result in results]
    rims = [
        [*losses[0], *losses[-1], *(loss for line in losses[1:-1] for loss in (line[0], line[-1]))]
        for losses in (result["losses"] for result in results)
    ]
    return [
        ("at the model", [_number(result["loss"]) for result in results]),
        ("lowest", [_number(min(losses)) for losses in every]),
        ("highest", [_number(max(losses)) for losses in every]),
        ("mean at the rim", [_number(sum(rim) / len(rim)) for rim in rims]),
    ]


def _number(value: float) -> Cell:
    return Cell(f"{value:.4g}", value)
