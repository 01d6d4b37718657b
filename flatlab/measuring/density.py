"""What `flatlab density` computes: how eigenvalues are distributed, of the whole network and layer by layer."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from analysis.density import SpectralDensity, spectral_density
from analysis.layer_blocks import LayerBlocks
from analysis.layers import find_layers
from analysis.operators import Matrix, SymmetricOperator, curvature_matrix
from analysis.problem import Problem
from analysis.trace import Estimate, mean_of
from flatlab.errors import require_count
from flatlab.measuring.matrices import kind_of, read_matrix
from flatlab.measuring.result import Result
from flatlab.tell import Tell, silent

if TYPE_CHECKING:
    from matplotlib.figure import Figure


_LAYERS = 3
"""Times as long, with layers: of the order of a few of them."""


@dataclass(frozen=True)
class Quadrature:
    """How much work goes into the density. Raises `UsageError` for too little."""

    depth: int = 40  # products per probe
    probes: int = 5
    matrix: Matrix = "hessian"
    layers: bool = False  # beside the network every layer

    @property
    def kind(self) -> str:
        """The name under which the density is saved."""
        return kind_of("density", self.matrix, *(["layers"] if self.layers else []))

    @property
    def products(self) -> float:
        """About how many products it takes; those with a layer's block are cheaper, and it has fewer."""
        return self.depth * self.probes * (_LAYERS if self.layers else 1)

    def __post_init__(self) -> None:
        read_matrix(self.matrix)
        require_count("depth", self.depth, 2)
        require_count("probes", self.probes)


@dataclass(frozen=True)
class Density:
    """The density of one matrix's eigenvalues, and what it says of the whole."""

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
        """The trace of the matrix."""
        return _mean(self.curve, lambda x: self.curve.size * x)

    def plain(self) -> dict[str, Any]:
        """The smoothed density, the quadrature it comes from, and what that says of the whole."""
        curve = self.curve
        return {
            "grid": curve.grid.tolist(),
            "density": curve.density.tolist(),
            "standard_error": curve.standard_error.tolist(),
            "sigma": curve.sigma,
            "size": curve.size,
            "nodes": [nodes.tolist() for nodes in curve.nodes],
            "node_weights": [weights.tolist() for weights in curve.weights],
            "lowest": self.lowest,
            "highest": self.highest,
            "shares": {name: vars(share) for name, share in self.shares.items()},
            "trace": vars(self.trace),
            "rounding": curve.rounding,
        }

    def points(self) -> Iterator[dict[str, float]]:
        """The curve, one row per point of the grid."""
        columns = (self.curve.grid.tolist(), self.curve.density.tolist(), self.curve.standard_error.tolist())
        names = ("eigenvalue", "density", "standard_error")
        return (dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True))

    def quantities(self) -> list[dict[str, Any]]:
        """The extent of the spectrum, the shares of its parts, and the trace."""
        shares = {f"share {name}": share for name, share in self.shares.items()}
        return [
            {"quantity": "lowest found", "value": self.lowest, "standard_error": math.nan},
            {"quantity": "highest found", "value": self.highest, "standard_error": math.nan},
            *({"quantity": name, **vars(one)} for name, one in {**shares, "trace": self.trace}.items()),
        ]


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class DensityResult(Result):
    """How the eigenvalues of a Hessian, or another matrix, are distributed, by stochastic Lanczos quadrature."""

    title: ClassVar[str] = "Density of the Hessian's eigenvalues"

    whole: Density  # of the network; its fields are this result's too
    layers: Mapping[str, Density]  # of each layer's block, by name, where that was asked for
    products: int  # with a vector, of all together

    @property
    def curve(self) -> SpectralDensity:
        """Grid, density and standard error, each (n,), and the quadrature they come from."""
        return self.whole.curve

    @property
    def lowest(self) -> float:
        """The lowest Ritz value, which is not below the lowest eigenvalue."""
        return self.whole.lowest

    @property
    def highest(self) -> float:
        """The highest Ritz value, which is not above the highest eigenvalue."""
        return self.whole.highest

    @property
    def shares(self) -> dict[str, Estimate]:
        """The shares of eigenvalues below -2 sigma, within 2 sigma of zero, and above 2 sigma."""
        return self.whole.shares

    @property
    def trace(self) -> Estimate:
        """The trace of the matrix."""
        return self.whole.trace

    def heading(self) -> str:
        """The density, and of which matrix's eigenvalues."""
        from figures.captions import matrix_name

        return f"Density of the eigenvalues of the {matrix_name({'settings': self.settings})}"

    def numbers(self) -> dict[str, Any]:
        """The network's density, and where layers were asked for theirs."""
        layers = [{"name": name, **one.plain()} for name, one in self.layers.items()]
        return {**self.whole.plain(), **({"layers": layers} if layers else {}), "hvps": self.products}

    def rows(self) -> list[dict[str, Any]]:
        """The curves, one row per point of the grid."""
        if not self.layers:
            return list(self.whole.points())
        return [{"layer": name, **point} for name, one in self._blocks() for point in one.points()]

    def summary(self) -> list[dict[str, Any]]:
        """The extent of the spectrum, the shares of its parts, and the trace."""
        if not self.layers:
            return self.whole.quantities()
        return [{"layer": name, **line} for name, one in self._blocks() for line in one.quantities()]

    def plot(self) -> "Figure":
        """The density on a logarithmic axis; with layers a panel for each."""
        from figures.layer_densities import draw_layer_densities
        from figures.spectral_density import draw_densities

        draw = draw_layer_densities if self.layers else draw_densities
        return draw([self.to_dict()]).figure

    def _blocks(self) -> list[tuple[str, Density]]:
        return [("network", self.whole), *self.layers.items()]


def measure_density(problem: Problem, quadrature: Quadrature, tell: Tell = silent) -> DensityResult:
    """Estimate the density, and those of the layers' blocks where they are asked for, with errors over the probes."""
    whole = _density(curvature_matrix(problem, quadrature.matrix), quadrature, "", tell)
    layers: dict[str, Density] = {}
    for name, operator in _layer_operators(problem, quadrature.matrix) if quadrature.layers else ():
        layers[name] = _density(operator, quadrature, f"{name}: " if name else "(own): ", tell)
        del operator  # and its graphs, before those of the next
    products = whole.curve.products + sum(one.curve.products for one in layers.values())
    return DensityResult(whole=whole, layers=layers, products=products)


def _density(operator: SymmetricOperator, quadrature: Quadrature, prefix: str, tell: Tell) -> Density:
    depth = min(quadrature.depth, operator.size)

    def show(products: int) -> None:
        tell(f"{prefix}{products} of {depth * quadrature.probes} products")

    return Density(spectral_density(operator, depth=depth, probes=quadrature.probes, progress=show))


def _layer_operators(problem: Problem, matrix: Matrix) -> Iterator[tuple[str, SymmetricOperator]]:
    """The layers' blocks, "" that of what the model owns itself; each made when it is asked for, and kept no longer."""
    if matrix == "hessian":
        blocks = LayerBlocks(problem)
        yield from ((name, blocks.operator(name)) for name in blocks.layers)
        return
    for layer in find_layers(problem):
        yield layer.name, curvature_matrix(problem.select(layer.parameters.values()), matrix)


def _mean(density: SpectralDensity, f: Callable[[Tensor], Tensor]) -> Estimate:
    """The mean of f over the eigenvalues, with its standard error over the probes."""
    return mean_of(density.means_of(f))
