"""What `flatlab surface` computes: the loss on a line or a plane through the parameters."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from analysis.eigenvalue import Eigenvalue
from analysis.objective import loss_at
from analysis.problem import Problem
from analysis.spectrum import eigs
from analysis.surface import Surface, filter_normalised_directions, loss_surface
from flatlab.errors import UsageError, require_count
from flatlab.measuring.eigs import plain_eigenvalue
from flatlab.measuring.result import Result
from flatlab.tell import Tell, silent

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Along = Literal["random", "eigenvectors"]


@dataclass(frozen=True)
class Section:
    """Where the loss is looked at."""

    along: Along = "random"
    dimensions: int = 2  # 1: a line
    extent: float = 1.0  # multiples of the directions, on either side
    points: int = 21  # along each direction
    seed: int = 0  # of random directions

    @property
    def products(self) -> float:
        """About how many Hessian products take as long; a forward pass is a sixth of one."""
        return float(self.points**self.dimensions) / 6


def read_section(along: str, line: bool, extent: float, points: int, seed: int) -> Section:
    """Raises `UsageError` for directions, an extent, or counts that are none."""
    require_count("points", points, 2)
    if seed and along == "eigenvectors":
        raise UsageError("A seed is of random directions, and eigenvectors have none: leave one of them out.")
    require_count("seed", seed, 0)
    if along not in ("random", "eigenvectors"):
        raise UsageError(f"--along is random or eigenvectors, not {along!r}.")
    if not 0 < extent < float("inf"):
        raise UsageError(f"--extent is a positive number, not {extent:g}.")
    return Section(along, 1 if line else 2, extent, points, seed)  # type: ignore[arg-type]


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class SurfaceResult(Result):
    """The loss on a line or a plane through the parameters; the centre is the model itself."""

    title: ClassVar[str] = "Loss around the model"

    loss: float  # L at the model
    surface: Surface  # a (n,), b (m,), losses (n, m), directions (P, 1 or 2)
    directions: str  # what they are
    eigenvalues: tuple[Eigenvalue, ...] = ()  # along eigenvectors: theirs
    products: int | None = None  # Hessian-vector products that finding eigenvectors took

    def searched(self) -> tuple[Eigenvalue, ...]:
        """Those of the directions, along eigenvectors."""
        return self.eigenvalues

    def numbers(self) -> dict[str, Any]:
        """Losses on the grid, at the model itself, and what the directions are."""
        found: dict[str, Any] = {}
        if self.eigenvalues:
            found = {"eigenvalues": [plain_eigenvalue(value) for value in self.eigenvalues], "hvps": self.products}
        return {
            "directions": self.directions,
            **found,
            "loss": self.loss,
            "a": self.surface.a.tolist(),
            "b": self.surface.b.tolist(),
            "losses": self.surface.losses.tolist(),
        }

    def rows(self) -> list[dict[str, Any]]:
        """One row per point: multiples of both directions, and the loss there."""
        a, b = self.surface.a.tolist(), self.surface.b.tolist()
        losses = self.surface.losses.tolist()
        return [{"a": a[i], "b": b[j], "loss": loss} for i, line in enumerate(losses) for j, loss in enumerate(line)]

    def summary(self) -> list[dict[str, Any]]:
        """The loss at the model, and the extremes of those around it that are finite."""
        losses = self.surface.losses[self.surface.losses.isfinite()]
        found = {"at the model": self.loss}
        if len(losses):
            found |= {"lowest": losses.min().item(), "highest": losses.max().item()}
        return [{"where": where, "loss": loss} for where, loss in found.items()]

    def plot(self) -> "Figure":
        """A curve along one direction, a map along two."""
        from figures.loss_line import draw_loss_lines
        from figures.loss_surface import draw_loss_surfaces

        plot = draw_loss_lines if len(self.surface.b) == 1 else draw_loss_surfaces
        return plot([self.to_dict()]).figure


def measure_surface(problem: Problem, section: Section, tell: Tell = silent) -> SurfaceResult:
    """Evaluate the loss on the grid and at the model itself."""
    values: tuple[Eigenvalue, ...] = ()
    products = None
    if section.along == "random":
        directions = filter_normalised_directions(problem, section.dimensions, seed=section.seed)
        name = f"filter-normalised random directions, seed {section.seed}"
    else:
        report = eigs(
            problem,
            section.dimensions,
            layers=[],
            progress=lambda _, products, residual: tell(f"eigenvectors: {products} products, residual {residual:.1e}"),
        )
        directions, name = report.vectors, "unit top eigenvectors"
        values, products = report.eigenvalues, report.products
    surface = loss_surface(
        problem,
        directions,
        extent=section.extent,
        points=section.points,
        progress=lambda done, total: tell(f"{done} of {total} points"),
    )
    return SurfaceResult(
        loss=loss_at(problem, problem.point()),
        surface=surface,
        directions=name,
        eigenvalues=values,
        products=products,
    )
