"""What `flatlab trace` does: traces of the network and its layers, and the Frobenius norm, by random probes."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from analysis.flatness import positions
from analysis.layers import find_layers
from analysis.operators import hessian
from analysis.problem import Problem
from analysis.trace import hutchinson
from flatlab.cli.console import console
from flatlab.errors import UsageError
from flatlab.measuring.pictures import save_picture
from flatlab.measuring.running import Tell, measure, silent
from flatlab.measuring.subjects import Measurement, Subject
from flatlab.measuring.tables import Cell, Row, loss_name, print_side_by_side


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


def trace_run(
    paths: Sequence[Path],
    measurement: Measurement,
    probing: Probing,
    figure: Path | None = None,
    json: Path | None = None,
) -> None:
    """Estimate traces, print, write and draw them."""

    def work(subject: Subject, tell: Tell) -> dict[str, Any]:
        return trace_numbers(subject.problem, probing, tell)

    results = measure("trace", paths, measurement, work, json)
    names = dict.fromkeys(layer["name"] for result in results for layer in result["layers"])
    by_name = [{layer["name"]: layer["trace"] for layer in result["layers"]} for result in results]
    rows: list[Row] = [("network", [estimate_cell(result["trace"]) for result in results])]
    rows += [(name, [estimate_cell(layers.get(name)) for layers in by_name]) for name in names]
    rows.append(("|H|_F, network", [estimate_cell(result["frobenius"]) for result in results]))
    title = f"Trace of the Hessian of {loss_name(results[0])}"
    print_side_by_side(title, "layer", "trace ± standard error", rows, results)
    _warn_unless_converged(results)
    if figure is not None:
        from figures.layer_traces import draw_layer_traces

        save_picture(draw_layer_traces, results, figure)


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


def estimate_cell(estimate: dict[str, float] | None) -> Cell | None:
    """A mean and its standard error."""
    if estimate is None:
        return None
    return Cell(f"{estimate['value']:.4g} ± {estimate['standard_error']:.2g}", estimate["value"])


def _warn_unless_converged(results: Sequence[dict[str, Any]]) -> None:
    if not all(result["converged"] for result in results):
        console.print("! not converged: the standard error is above the tolerance; raise --max-probes, or --tol.")
