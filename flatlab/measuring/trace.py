"""What `flatlab trace` computes: traces of the network and its layers, and the Frobenius norm, by random probes."""

from dataclasses import dataclass
from typing import Any

import torch

from analysis.flatness import positions
from analysis.layers import find_layers
from analysis.operators import hessian
from analysis.problem import Problem
from analysis.trace import hutchinson
from flatlab.errors import UsageError
from flatlab.tell import Tell, silent


@dataclass(frozen=True)
class Probing:
    """When the trace is exact enough."""

    tol: float = 0.02  # standard error, as a share of the trace
    max_probes: int = 400


def read_probing(tol: float, max_probes: int) -> Probing:
    """Raises `UsageError` for a tolerance that is none."""
    if not 0 < tol < 1:
        raise UsageError(f"--tol is a share of the trace, between 0 and 1, not {tol:g}.")
    return Probing(tol, max_probes)


def trace_numbers(problem: Problem, probing: Probing, tell: Tell = silent) -> dict[str, Any]:
    """Trace, the layers' traces and the Frobenius norm, from the same probes."""
    places = positions(problem)
    groups = {
        layer.name: torch.cat([places[name] for name in layer.parameters.values()]) for layer in find_layers(problem)
    }
    moments = hutchinson(
        hessian(problem),
        tol=probing.tol,
        max_probes=probing.max_probes,
        groups=groups,
        progress=lambda probes, error: tell(f"{probes} probes, standard error {error:.1%}"),
    )
    return {
        "trace": vars(moments.trace),
        "frobenius": vars(moments.frobenius),
        "layers": [{"name": name, "trace": vars(trace)} for name, trace in moments.groups.items()],
        "converged": moments.converged,
        "hvps": moments.products,
    }
