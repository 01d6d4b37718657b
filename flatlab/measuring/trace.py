"""What `flatlab trace` computes: traces of the network and its layers, and the Frobenius norm, by random probes."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from analysis.flatness import positions
from analysis.layers import find_layers
from analysis.operators import Matrix, curvature_matrix
from analysis.problem import Problem
from analysis.trace import Estimate, hutch_plus_plus, hutchinson
from flatlab.errors import UsageError, require_count
from flatlab.measuring.matrices import kind_of, read_matrix
from flatlab.measuring.result import Result
from flatlab.tell import Tell, silent

if TYPE_CHECKING:
    from matplotlib.figure import Figure


TRACE_VARIANCE = 0.07
"""Variance of one probe of the trace over the trace's square: about 0.03 for the CIFAR CNN, 0.1 for the digits' MLP."""


@dataclass(frozen=True)
class Probing:
    """When the trace is exact enough."""

    tol: float = 0.02  # standard error, as a share of the trace
    max_probes: int = 400
    estimator: str = "hutchinson"  # or "hutch++", which makes `max_probes` products whatever the tolerance
    matrix: Matrix = "hessian"

    @property
    def kind(self) -> str:
        """The name under which the trace is saved."""
        return kind_of("trace", self.matrix)

    @property
    def products(self) -> float:
        """About how many products it takes."""
        if self.estimator == "hutch++":
            return self.max_probes
        return min(self.max_probes, TRACE_VARIANCE / self.tol / self.tol)  # whose square may vanish


def read_probing(
    tol: float | None, max_probes: int | None, estimator: str = "hutchinson", matrix: str = "hessian"
) -> Probing:
    """Raises `UsageError` for what is no tolerance, number or name, or where `estimator` does without."""
    chosen = read_matrix(matrix)
    if estimator not in ("hutchinson", "hutch++"):
        raise UsageError(f"--estimator is hutchinson or hutch++, not {estimator!r}.")
    if estimator == "hutch++":
        if tol is not None:
            raise UsageError("--tol is of Hutchinson's estimate; Hutch++ makes --max-probes products: leave --tol out.")
        require_count("max-probes", 60 if max_probes is None else max_probes, 6)
        return Probing(Probing.tol, max_probes or 60, estimator, chosen)
    tol = Probing.tol if tol is None else tol
    max_probes = Probing.max_probes if max_probes is None else max_probes
    require_count("max-probes", max_probes, 2)
    if not 0 < tol < 1:
        raise UsageError(f"--tol is a share of the trace, between 0 and 1, not {tol:g}.")
    return Probing(tol, max_probes, matrix=chosen)


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class TraceResult(Result):
    """The trace of a network's Hessian, or another matrix, and of every layer's block, and the Frobenius norm."""

    title: ClassVar[str] = "Trace of the Hessian"

    trace: Estimate  # with its standard error
    frobenius: Estimate | None  # |H|_F; None by Hutch++
    layers: Mapping[str, Estimate]  # the trace of each layer's block, by name
    converged: bool  # the trace's standard error met the tolerance
    rounded: bool  # it would have but for rounding
    products: int  # with a vector, one per probe

    @property
    def finished(self) -> bool:
        """Whether the trace is as exact as was asked, or to rounding."""
        return self.converged or self.rounded

    def heading(self) -> str:
        """The trace, and of which matrix."""
        from figures.captions import matrix_name

        return f"Trace of the {matrix_name({'settings': self.settings})}"

    def numbers(self) -> dict[str, Any]:
        """Every estimate with its standard error."""
        return {
            "trace": vars(self.trace),
            "frobenius": self.frobenius and vars(self.frobenius),
            "layers": [{"name": name, "trace": vars(trace)} for name, trace in self.layers.items()],
            "converged": self.converged,
            "rounded": self.rounded,
            "hvps": self.products,
        }

    def rows(self) -> list[dict[str, Any]]:
        """One row per estimate."""
        estimates = [("trace", "network", self.trace)]
        estimates += [("|H|_F", "network", self.frobenius)] if self.frobenius else []
        estimates += [("trace", name, trace) for name, trace in self.layers.items()]
        return [{"quantity": quantity, "layer": layer, **vars(estimate)} for quantity, layer, estimate in estimates]

    def plot(self) -> "Figure":
        """The traces as bars, their standard errors as whiskers."""
        from figures.layer_traces import draw_layer_traces

        return draw_layer_traces([self.to_dict()]).figure


def measure_trace(problem: Problem, probing: Probing, tell: Tell = silent) -> TraceResult:
    """Trace, layers' traces and Frobenius norm from the same probes; by Hutch++ the trace of the network alone."""
    operator = curvature_matrix(problem, probing.matrix)
    if probing.estimator == "hutch++":
        trace = hutch_plus_plus(operator, probing.max_probes)
        settled, rounded = trace.is_settled(probing.tol), trace.is_rounded(probing.tol)
        return TraceResult(
            trace=trace,
            frobenius=None,
            layers={},
            converged=settled and not rounded,
            rounded=settled and rounded,
            products=operator.products + int(operator.exact is not None),
        )
    places = positions(problem)
    groups = {
        layer.name: torch.cat([places[name] for name in layer.parameters.values()]) for layer in find_layers(problem)
    }
    moments = hutchinson(
        operator,
        tol=probing.tol,
        max_probes=probing.max_probes,
        groups=groups,
        progress=lambda probes, error: tell(f"{probes} probes, standard error {error:.1%}"),
    )
    return TraceResult(
        trace=moments.trace,
        frobenius=moments.frobenius,
        layers=moments.groups,
        converged=moments.converged,
        rounded=moments.rounded,
        products=moments.products,
    )
