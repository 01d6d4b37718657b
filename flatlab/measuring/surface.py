"""What `flatlab surface` computes: the loss on a line or a plane through the parameters."""

from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from analysis.objective import loss_at
from analysis.problem import Problem
from analysis.spectrum import eigs
from analysis.surface import filter_normalised_directions, loss_surface
from flatlab.errors import UsageError
from flatlab.measuring.eigs import plain_eigenvalue
from flatlab.tell import Tell, silent

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
