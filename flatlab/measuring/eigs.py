"""What `flatlab eigs` computes: top eigenvalues of the network and its layers, and how much they owe to the sample."""

import math
from dataclasses import dataclass
from typing import Any

from analysis.problem import Problem
from analysis.spectrum import Backend, Eigenvalue, EigsReport, Method, eigs
from analysis.subsets import Spread, sampling_spread
from flatlab.errors import UsageError
from flatlab.measuring.ranks import ranks
from flatlab.measuring.subjects import Subject
from flatlab.tell import Tell, silent

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
        for name in ("layers", "method", "backend"):
            if getattr(self, name) != getattr(Search, name):
                raise UsageError(f"--{name} does nothing beside {option}: leave one of them out.")


def read_search(k: int, layers: str, method: str, backend: str, tol: float, max_iter: int) -> Search:
    """Raises `UsageError` for a method, a backend or a tolerance that is none."""
    if method not in ("lanczos", "power"):
        raise UsageError(f"--method is lanczos or power, not {method!r}.")
    if backend not in ("flatlab", "pyhessian"):
        raise UsageError(f"--backend is flatlab or pyhessian, not {backend!r}.")
    if not 0 < tol < 1:
        raise UsageError(f"--tol is a share of the eigenvalue, between 0 and 1, not {tol:g}.")
    return Search(k, layers, method, backend, tol, max_iter)  # type: ignore[arg-type]


def eigs_numbers(subject: Subject, search: Search, tell: Tell = silent) -> dict[str, Any]:
    """Top eigenvalues of the network and its layers and, where its samples are some of many, their sampling error."""
    report = top(subject.problem, search, tell)
    spread = None
    samples = subject.problem.samples
    if samples < subject.available and samples >= 2 * PARTS * ranks():
        tell(f"{PARTS} subsets, to see the sampling error")
        spread = sampling_spread(subject.problem, PARTS, start=report.vectors[:, :1])
    return plain_report(report) | {"sampling": spread and plain_spread(spread)}


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
        backend=search.backend,
        progress=show,
    )


def plain_report(report: EigsReport) -> dict[str, Any]:
    """The report as plain data; a norm that does not exist is null."""
    return {
        "loss": report.loss,
        "global": {"eigenvalues": [plain_eigenvalue(value) for value in report.eigenvalues]},
        "layers": [
            {
                "name": layer.name,
                "parameters": layer.parameters,
                "eigenvalues": [plain_eigenvalue(value) for value in layer.eigenvalues],
                "input_norm2": None if math.isnan(layer.input_norm2) else layer.input_norm2,
                "output_norm2": None if math.isnan(layer.output_norm2) else layer.output_norm2,
            }
            for layer in report.layers
        ],
        "method": report.method,
        "backend": report.backend,
        "hvps": report.products,
        "seconds": report.seconds,
    }


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
