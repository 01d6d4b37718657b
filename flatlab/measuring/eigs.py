"""What `flatlab eigs` computes: extreme eigenvalues of the network and its layers, and how they owe to the sample."""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from analysis.eigenvalue import Eigenvalue
from analysis.errors import UncountedError
from analysis.operators import Matrix
from analysis.problem import Problem
from analysis.spectrum import Backend, EigsReport, End, LayerSpectrum, Method, eigs
from analysis.subsets import Spread, sampling_spread
from flatlab.errors import UsageError, require_count
from flatlab.measuring.eigenvectors import write_vectors
from flatlab.measuring.matrices import kind_of, read_matrix
from flatlab.measuring.ranks import ranks
from flatlab.measuring.result import Result
from flatlab.measuring.subjects import Subject
from flatlab.tell import Tell, silent

if TYPE_CHECKING:
    from matplotlib.figure import Figure

EIGS_PRODUCTS = 50
"""That the top of a network and its layers takes: 40 for the digits' MLP, 70 for the CIFAR CNN."""

_LAYERS_APART = 3
"""Times as much, where layers do not share one graph: of the order of a few layers."""

PARTS = 4
"""Disjoint subsets on which lambda_max is measured again, to see how much the sample matters."""


@dataclass(frozen=True)
class Search:
    """Which eigenvalues are sought, and how exactly."""

    k: int = 1
    layers: str = "all"  # or "none", or names separated by commas
    method: Method = "lanczos"
    backend: Backend = "flatlab"
    tol: float = 1e-3
    max_iter: int = 1000
    which: End = "largest"
    matrix: Matrix = "hessian"
    group_by: str | None = None  # "block", or patterns of layers' names separated by commas

    @property
    def kind(self) -> str:
        """The name under which what is found is saved."""
        return kind_of("eigs", self.matrix, *([] if self.which == "largest" else [self.which]))

    @property
    def settings(self) -> dict[str, Any]:
        """As results state them."""
        return {name: value for name, value in vars(self).items() if value is not None}

    @property
    def products(self) -> float:
        """About how many products it takes, layers and subsets included."""
        ends = 2 if self.which == "both" else 1
        return EIGS_PRODUCTS * (1 + (ends * self.k - 1) / 2) * (1 if self.matrix == "hessian" else _LAYERS_APART)

    @property
    def layer_names(self) -> list[str] | None:
        """The layers as `analysis.spectrum.eigs` takes them."""
        given: dict[str, list[str] | None] = {"all": None, "none": []}
        return given.get(self.layers, [name.strip() for name in self.layers.split(",")])

    @property
    def plain_part(self) -> dict[str, Any]:
        """The settings that are left where `require_plain` holds."""
        return {"k": self.k, "tol": self.tol, "max_iter": self.max_iter}

    def require_plain(self, option: str) -> None:
        """Raise `UsageError` where something is asked for that `option` leaves no room for."""
        for name in ("layers", "group_by", "method", "backend", "which", "matrix"):
            if getattr(self, name) != getattr(Search, name):
                raise UsageError(f"--{name.replace('_', '-')} does nothing beside {option}: leave one of them out.")


def read_search(
    k: int,
    layers: str = "all",
    method: str = "lanczos",
    backend: str = "flatlab",
    tol: float = 1e-3,
    max_iter: int = 1000,
    which: str = "largest",
    matrix: str = "hessian",
    group_by: str | None = None,
) -> Search:
    """Raises `UsageError` for a choice or a number that is none, and for choices that exclude one another."""
    require_count("top-k", k)
    require_count("max-iter", max_iter)
    if method not in ("lanczos", "power"):
        raise UsageError(f"--method is lanczos or power, not {method!r}.")
    if backend not in ("flatlab", "pyhessian"):
        raise UsageError(f"--backend is flatlab or pyhessian, not {backend!r}.")
    if not 0 < tol < 1:
        raise UsageError(f"--tol is a share of the eigenvalue, between 0 and 1, not {tol:g}.")
    if which not in ("largest", "smallest", "both"):
        raise UsageError(f"--which is largest, smallest or both, not {which!r}.")
    if which != "largest" and method == "power":
        raise UsageError("Power iteration finds the largest magnitude alone: leave --method out, or --which.")
    if matrix != "hessian" and backend == "pyhessian":
        raise UsageError("PyHessian multiplies by the Hessian alone: leave --backend out, or --matrix.")
    if group_by is not None and not all(part.strip() for part in group_by.split(",")):
        raise UsageError("--group-by is block, or patterns of layers' names separated by commas, such as 'h.*'.")
    if group_by is not None and layers == "none":
        raise UsageError("--group-by does nothing beside --layers none: leave one of them out.")
    return Search(k, layers, method, backend, tol, max_iter, which, read_matrix(matrix), group_by)  # type: ignore[arg-type]


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class EigsResult(Result):
    """Extreme eigenvalues of a network's Hessian, or another matrix, and of every layer's block of it.

    Of both ends, the k largest stand before the k smallest.
    """

    title: ClassVar[str] = "Top Hessian eigenvalues"

    loss: float  # L
    eigenvalues: tuple[Eigenvalue, ...]  # (k,) of the whole matrix, or of both ends (2 k,), each with its residual
    vectors: Tensor  # (P, k or 2 k) of the whole matrix, unit columns
    layers: tuple[LayerSpectrum, ...]  # each with its own eigenvalues and its activations' norms
    sampling: Spread | None  # lambda_max on disjoint subsets, where the samples are some of many
    method: Method
    backend: Backend
    products: int  # with a vector
    which: End
    parameters: Mapping[str, tuple[int, ...]]  # shapes, in the order of `vectors`

    @property
    def converged(self) -> bool:
        """Whether every eigenvalue met the tolerance."""
        return all(value.converged for value in self._listed())

    def searched(self) -> list[Eigenvalue]:
        """Those of the network, of its layers, and of subsets of the samples."""
        return [*self._listed(), *(self.sampling.values if self.sampling else ())]

    def _listed(self) -> list[Eigenvalue]:
        return [*self.eigenvalues, *(value for layer in self.layers for value in layer.eigenvalues)]

    def numbers(self) -> dict[str, Any]:
        """Eigenvalues and norms; a norm that does not exist is null."""
        return {
            "loss": self.loss,
            "global": {
                "parameters": sum(map(math.prod, self.parameters.values())),
                "eigenvalues": self._plain(self.eigenvalues),
            },
            "layers": [
                {
                    "name": layer.name,
                    "parameters": layer.parameters,
                    "eigenvalues": self._plain(layer.eigenvalues),
                    "input_norm2": None if math.isnan(layer.input_norm2) else layer.input_norm2,
                    "output_norm2": None if math.isnan(layer.output_norm2) else layer.output_norm2,
                }
                for layer in self.layers
            ],
            "method": self.method,
            "backend": self.backend,
            "hvps": self.products,
            "sampling": self.sampling and plain_spread(self.sampling),
        }

    def rows(self) -> list[dict[str, Any]]:
        """One row per eigenvalue, the network's first; norms are means over the samples of |a|^2."""
        blocks = [("network", self.eigenvalues, math.nan, math.nan)]
        blocks += [(layer.name, layer.eigenvalues, layer.input_norm2, layer.output_norm2) for layer in self.layers]
        return [
            {
                "layer": name,
                "end": end,
                "index": index,
                "eigenvalue": value.value,
                "residual": value.residual,
                "converged": value.converged,
                "input_norm2": norm_in,
                "output_norm2": norm_out,
            }
            for name, values, norm_in, norm_out in blocks
            for (end, index), value in zip(self._ends(len(values)), values, strict=True)
        ]

    def heading(self) -> str:
        """Which eigenvalues, of which matrix."""
        from figures.captions import matrix_name

        ends = {"largest": "Largest", "smallest": "Smallest", "both": "Largest and smallest"}
        return f"{ends[self.which]} eigenvalues of the {matrix_name({'settings': self.settings})}"

    def save_vectors(self, path: str | Path) -> None:
        """Write the eigenvectors to a safetensors file, atomically; `flatlab.load_vectors` reads it.

        Under each parameter's name in the model it holds a tensor (k, *shape), one row per eigenvector, and in its
        metadata eigenvalues, residuals, settings, and the fingerprint of the run that was measured.
        """
        pairs = [(value.value, value.residual, value.converged) for value in self.eigenvalues]
        write_vectors(Path(path), self.vectors, self.parameters, pairs, {**self.about, "settings": {**self.settings}})

    def _ends(self, count: int) -> list[tuple[str, int]]:
        """At which end of the spectrum each of `count` eigenvalues stands, and the how-manieth it is there."""
        if self.which != "both":
            end = "magnitude" if self.method == "power" else self.which
            return [(end, index) for index in range(1, count + 1)]
        largest = count - count // 2
        return [("largest", i + 1) if i < largest else ("smallest", i + 1 - largest) for i in range(count)]

    def _plain(self, values: Sequence[Eigenvalue]) -> list[dict[str, Any]]:
        ends = self._ends(len(values))
        return [{"end": end, **plain_eigenvalue(value)} for (end, _), value in zip(ends, values, strict=True)]

    def plot(self) -> "Figure":
        """The top eigenvalue of every layer, and the norm of the activation that leaves it."""
        from figures.layer_eigenvalues import draw_layers

        return draw_layers([self.to_dict()]).figure


def measure_eigs(subject: Subject, search: Search, tell: Tell = silent, *, sampling: bool = True) -> EigsResult:
    """Eigenvalues of the network and its layers and, where its samples are some of many, the top's sampling error."""
    report = top(subject.problem, search, tell)
    spread = None
    samples = subject.problem.samples
    some = samples < subject.available and samples >= 2 * PARTS * ranks()
    largest = search.which != "smallest" and (search.method != "power" or report.eigenvalues[0].value > 0)
    if sampling and some and largest:
        tell(f"{PARTS} subsets, to see the sampling error")
        try:
            spread = sampling_spread(
                subject.problem, PARTS, max_iter=search.max_iter, start=report.vectors[:, :1], matrix=search.matrix
            )
        except UncountedError:
            warnings.warn(
                f"How much the choice of samples matters stays open: one of {PARTS} subsets has no target that counts.",
                stacklevel=2,
            )
    return EigsResult(
        loss=report.loss,
        eigenvalues=report.eigenvalues,
        vectors=report.vectors,
        layers=report.layers,
        sampling=spread,
        method=report.method,
        backend=report.backend,
        products=report.products,
        which=search.which,
        parameters={name: tuple(parameter.shape) for name, parameter in subject.problem.parameters.items()},
    )


def top(problem: Problem, search: Search, tell: Tell) -> EigsReport:
    """Run the search and tell how it goes."""

    def show(layer: str, products: int, residual: float) -> None:
        tell(f"{layer or 'whole network'}: {products} products, residual {residual:.1e}")

    return eigs(
        problem,
        search.k,
        tol=search.tol,
        max_iter=search.max_iter,
        method=search.method,
        layers=search.layer_names,
        group_by=search.group_by,
        backend=search.backend,
        which=search.which,
        matrix=search.matrix,
        progress=show,
    )


def plain_eigenvalue(value: Eigenvalue) -> dict[str, Any]:
    """Value, residual, the sharper bound, whether it met the tolerance, and what is certified of others."""
    return {
        "value": value.value,
        "residual": value.residual,
        "error": value.error,
        "converged": value.converged,
        "rounded": value.rounded,
        "missed": value.missed,
        "confirmed": value.confirmed,
    }


def plain_spread(spread: Spread) -> dict[str, Any]:
    """How much lambda_max moves between disjoint subsets."""
    return {
        "subsets": [plain_eigenvalue(value) for value in spread.values],
        "samples_per_subset": spread.samples,
        "mean": spread.mean,
        "deviation": spread.deviation,
        "standard_error": spread.standard_error,
    }
