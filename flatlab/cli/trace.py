"""`flatlab trace`: the trace of the Hessian, or another matrix, of network and layers; and measures of flatness."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from figures.captions import matrix_name
from figures.labels import block_label
from flatlab.cli.eigs_table import shown, warn_unless_converged
from flatlab.cli.options import MATRIX, Given, choice, measuring
from flatlab.cli.pictures import save_picture
from flatlab.cli.side_by_side import Cell, Row, doubt, estimate_cell, loss_name, number_cell, print_side_by_side
from flatlab.errors import UsageError
from flatlab.terminal.console import console

if TYPE_CHECKING:
    from flatlab.measuring.result import Result
    from flatlab.measuring.subjects import Subject
    from flatlab.tell import Tell


_WORST = "Worst-case adaptive sharpness (with --flatness)"


@measuring
def trace(
    given: Given,
    flatness: Annotated[
        bool,
        typer.Option("--flatness", help="Every measure: eigenvalues, sharpness, and what rescaling cannot change."),
    ] = False,
    tol: Annotated[
        float | None,
        typer.Option(help="Stop where the standard error is below this share of the trace.", show_default="0.02"),
    ] = None,
    max_probes: Annotated[
        int | None,
        typer.Option(min=2, help="Most random vectors, one product each.", show_default="400; of Hutch++ 60 products"),
    ] = None,
    estimator: Annotated[
        str, choice("hutchinson", "hutch++", help="Hutch++ is sharper where the spectrum decays; network alone.")
    ] = "hutchinson",
    matrix: Annotated[str, MATRIX] = "hessian",
    worst_case: Annotated[
        str | None,
        choice(
            "linf",
            "l2",
            help="Climb to where the loss is worst: linf, every parameter within a share of its size; l2, all shares "
            "together.",
            rich_help_panel=_WORST,
        ),
    ] = None,
    radius: Annotated[
        float | None,
        typer.Option(help="The share.", show_default="0.001 in linf, 0.5 in l2", rich_help_panel=_WORST),
    ] = None,
    ascent_steps: Annotated[
        int | None, typer.Option(min=1, help="Gradients climbed along.", show_default="20", rich_help_panel=_WORST)
    ] = None,
    batch: Annotated[
        int | None,
        typer.Option(min=1, help="Samples that share a worst case.", show_default="128", rich_help_panel=_WORST),
    ] = None,
    normalise_logits: Annotated[
        bool,
        typer.Option("--normalise-logits", help="Of logits divided by their norm.", rich_help_panel=_WORST),
    ] = False,
) -> None:
    """Estimate the trace of a Hessian, which is the sum of its eigenvalues, and that of every layer's block.

    Hutchinson's estimate from random signs, with its standard error; the same products give the Frobenius norm. With
    --flatness also λ₁, λ₁/λ₅, the sharpness of SAM and ASAM, each layer's relative flatness, and with --worst-case the
    adaptive sharpness of Andriushchenko et al. (2023), a lower bound of the greatest rise.
    """
    from figures.layer_traces import draw_layer_traces
    from figures.relative_flatness import draw_relative_flatness
    from flatlab.cli.sweep import measure
    from flatlab.measuring.eigs import Search
    from flatlab.measuring.flatness import flatness_settings, measure_flatness, read_ascent
    from flatlab.measuring.trace import measure_trace, read_probing

    probing, measurement = read_probing(tol, max_probes, estimator, matrix), given.measurement()
    if flatness and estimator != "hutchinson":
        raise UsageError("--flatness takes its traces by Hutchinson's estimate: leave --estimator out.")
    if flatness and matrix != "hessian":
        raise UsageError("The measures of --flatness are those of the Hessian: leave --matrix out.")
    ascent = read_ascent(worst_case, radius, ascent_steps, batch, normalise_logits)
    if ascent is not None and not flatness:
        raise UsageError("--worst-case is one of the measures of --flatness: ask for these.")
    kind, settings, show, draw = (
        ("flatness", flatness_settings(probing, ascent), print_flatness, draw_relative_flatness)
        if flatness
        else (probing.kind, vars(probing), print_traces, draw_layer_traces)
    )

    def work(subject: "Subject", tell: "Tell") -> "Result":
        if flatness:
            return measure_flatness(subject.problem, probing, tell, ascent)
        return measure_trace(subject.problem, probing, tell)

    def present(results: Sequence[dict[str, Any]]) -> None:
        show(results)
        if given.figure is not None:
            save_picture(draw, results, given.figure)

    measure(
        kind,
        given.paths,
        measurement,
        settings,
        work,
        present,
        given.json,
        given.figure,
        products=probing.products + (2 * Search().products if flatness else 0) + (ascent.products if ascent else 0),
    )


def print_traces(results: Sequence[dict[str, Any]]) -> None:
    """The trace of the network and of every layer, and the Frobenius norm."""
    names = dict.fromkeys(layer["name"] for result in results for layer in result["layers"])
    by_name = [{layer["name"]: layer["trace"] for layer in result["layers"]} for result in results]
    traces = [{**result["trace"], "converged": result["converged"], "rounded": result["rounded"]} for result in results]
    rows: list[Row] = [("network", [estimate_cell(trace) for trace in traces])]
    rows += [(block_label(name), [estimate_cell(layers.get(name)) for layers in by_name]) for name in names]
    if any(result["frobenius"] for result in results):
        letter = {"Hessian": "H", "Gauss-Newton matrix": "G"}.get(matrix_name(results[0]), "F")
        rows.append((f"|{letter}|_F, network", [estimate_cell(result["frobenius"]) for result in results]))
    title = f"Trace of the {matrix_name(results[0])} of {loss_name(results[0])}"
    print_side_by_side(title, "layer", "trace ± standard error", rows, results)
    _warn_unless_converged(traces, [], results[0]["settings"])


def print_flatness(results: Sequence[dict[str, Any]]) -> None:
    """Every measure, side by side."""
    title = f"Flatness of {loss_name(results[0])}"
    print_side_by_side(title, "measure", "value ± error", _flatness_rows(results), results)
    console.print(
        "Smaller is flatter, in every row but λ₁/λ₅, which says how far the top stands out.\n"
        "* unchanged when a ReLU network is rescaled to the same function; W: a layer's weights, no bias."
    )
    searched = [[*result["eigenvalues"], *(layer["top"] for layer in result["layers"])] for result in results]
    eigenvalues = [value for values in searched for value in values]
    _warn_unless_converged([result["trace"] for result in results], eigenvalues, results[0]["settings"])
    if not all(result["sam_sharpness"]["confirmed"] for result in results):
        console.print("SAM and adaptive sharpness are of losses in float32: the model does not run in float64.")
    if worst := results[0].get("worst_case_sharpness"):
        logits = " of normalised logits" if worst["normalised_logits"] else ""
        console.print(
            f"worst case: the mean over {len(worst['values'])} batches of {worst['batch_size']} samples of how far "
            f"{worst['steps']} steps of ascent raise the loss{logits}; at least that high is the greatest rise.",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
        if not all(result["worst_case_sharpness"]["confirmed"] for result in results):
            console.print("The rise is a difference of losses in float32: the model does not run in float64.")


def _warn_unless_converged(
    traces: Sequence[Mapping[str, Any]], eigenvalues: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]
) -> None:
    """Say what the marks of traces, and of eigenvalues beside them, mean, and what to do."""
    rounded = [trace for trace in traces if doubt(trace) == " ~"]
    warn_unless_converged([*eigenvalues, *rounded], settings["dtype"], adjustable=False)
    if any(doubt(trace) == " !" for trace in traces):
        advice = "--max-probes" if settings["estimator"] == "hutch++" else "--max-probes, or --tol"  # which that lacks
        console.print(
            f"! not converged: the standard error is above {settings['tol']:.2g} of the trace; raise {advice}.",
            soft_wrap=True,
        )


def _flatness_rows(results: Sequence[Mapping[str, Any]]) -> list[Row]:
    sharpness = {key: results[0][key]["radius"] for key in ("sam_sharpness", "adaptive_sharpness")}
    eigenvalues = [result["eigenvalues"] for result in results]
    rows: list[Row] = [
        ("λ₁", [Cell(shown(values[:1]), values[0]["value"]) for values in eigenvalues]),
        ("λ₁/λ₅", [_spread(result) for result in results]),
        ("trace", [estimate_cell(result["trace"]) for result in results]),
        ("|H|_F", [estimate_cell(result["frobenius"]) for result in results]),
    ]
    for key, name in (
        ("sam_sharpness", "SAM sharpness, ρ = {:g}"),
        ("adaptive_sharpness", "adaptive sharpness*, ρ = {:g}"),
    ):
        rows.append((name.format(sharpness[key]), [number_cell(result[key]["value"]) for result in results]))
    if worst := results[0].get("worst_case_sharpness"):
        label = f"adaptive worst case* in {_NORMS[worst['norm']]}, ρ = {worst['radius']:g}"
        values = [result["worst_case_sharpness"]["value"] for result in results]
        rows.append((label, [replace(cell, text=f"≥ {cell.text}") for cell in map(number_cell, values)]))
    names = list(dict.fromkeys(layer["name"] for result in results for layer in result["layers"]))
    for label, cell in _RELATIVE.items():
        for name in names:
            found = [next((own for own in result["layers"] if own["name"] == name), None) for result in results]
            rows.append((f"{block_label(name)}: {label}", [None if own is None else cell(own) for own in found]))
    return rows


def _spread(result: Mapping[str, Any]) -> Cell | None:
    """How far apart the largest eigenvalues are, where the fifth can be told from zero."""
    if result["spread"] is None or abs(result["eigenvalues"][4]["value"]) <= result["eigenvalues"][4]["residual"]:
        return None
    cell, marks = number_cell(result["spread"]), (doubt(result["eigenvalues"][at]) for at in (0, 4))
    return replace(cell, text=f"{cell.text}{min(filter(None, marks), default='')}")


_NORMS = {"linf": "ℓ∞", "l2": "ℓ₂"}


def _by_eigenvalue(own: Mapping[str, Any]) -> Cell:
    cell = number_cell(own["by_eigenvalue"], own["weight_norm2"] * own["top"]["residual"])
    return replace(cell, text=f"{cell.text}{doubt(own['top'])}")


_RELATIVE: Mapping[str, Callable[[Mapping[str, Any]], Cell]] = {
    "|W|² λmax*": _by_eigenvalue,
    "|W|² trace*": lambda own: number_cell(own["by_trace"], own["weight_norm2"] * own["trace"]["standard_error"]),
}
"""Relative flatness of a layer, two ways."""
