"""What `flatlab trace --flatness` does: raw and rescaling-invariant measures of the same point, side by side."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from analysis.flatness import flatness
from analysis.problem import Problem
from flatlab.cli.console import console
from flatlab.measuring.eigs import plain_eigenvalue
from flatlab.measuring.pictures import save_picture
from flatlab.measuring.running import Tell, measure, silent
from flatlab.measuring.subjects import Measurement, Subject
from flatlab.measuring.tables import Cell, Row, loss_name, print_side_by_side
from flatlab.measuring.trace import Probing, estimate_cell


def flatness_run(
    paths: Sequence[Path],
    measurement: Measurement,
    probing: Probing,
    figure: Path | None = None,
    json: Path | None = None,
) -> None:
    """Take every measure, print, write and draw them."""

    def work(subject: Subject, tell: Tell) -> dict[str, Any]:
        return flatness_numbers(subject.problem, probing, tell)

    results = measure("flatness", paths, measurement, work, json)
    print_side_by_side(f"Flatness of {loss_name(results[0])}", "measure", "value ± error", _rows(results), results)
    console.print("* unchanged when a ReLU network is rescaled to the same function; W: a layer's weights, no bias.")
    if figure is not None:
        from figures.relative_flatness import draw_relative_flatness

        save_picture(draw_relative_flatness, results, figure)


def flatness_numbers(problem: Problem, probing: Probing, tell: Tell = silent) -> dict[str, Any]:
    """Every measure of `analysis.flatness`, as plain data."""

    def show(stage: str, products: int, error: float) -> None:
        tell(f"{stage or 'whole network'}: {products} products, relative error {error:.1e}")

    report = flatness(problem, trace_tol=probing.tol, max_probes=probing.max_probes, progress=show)
    return {
        "loss": report.loss,
        "eigenvalues": [plain_eigenvalue(value) for value in report.eigenvalues],
        "spread": report.spread if report.spread == report.spread else None,  # nan with fewer than five parameters
        "trace": vars(report.trace),
        "frobenius": vars(report.frobenius),
        "sam_sharpness": {"value": report.sam_sharpness, "radius": report.sam_radius},
        "adaptive_sharpness": {"value": report.adaptive_sharpness, "radius": report.adaptive_radius},
        "layers": [
            {
                "name": layer.name,
                "weight_norm2": layer.weight_norm2,
                "top": plain_eigenvalue(layer.top),
                "trace": vars(layer.trace),
                "by_eigenvalue": layer.by_eigenvalue,
                "by_trace": layer.by_trace,
            }
            for layer in report.layers
        ],
        "hvps": report.products,
    }


def _rows(results: Sequence[Mapping[str, Any]]) -> list[Row]:
    sharpness = {key: results[0][key]["radius"] for key in ("sam_sharpness", "adaptive_sharpness")}
    rows: list[Row] = [
        ("λ₁", [_eigenvalue_cell(result["eigenvalues"][0]) for result in results]),
        ("λ₁/λ₅", [None if result["spread"] is None else _number(result["spread"]) for result in results]),
        ("trace", [estimate_cell(result["trace"]) for result in results]),
        ("|H|_F", [estimate_cell(result["frobenius"]) for result in results]),
    ]
    for key, name in (
        ("sam_sharpness", "SAM sharpness, ρ = {:g}"),
        ("adaptive_sharpness", "adaptive sharpness*, ρ = {:g}"),
    ):
        rows.append((name.format(sharpness[key]), [_number(result[key]["value"]) for result in results]))
    names = list(dict.fromkeys(layer["name"] for result in results for layer in result["layers"]))
    for label, cell in _RELATIVE.items():
        for name in names:
            found = [next((own for own in result["layers"] if own["name"] == name), None) for result in results]
            rows.append((f"{name}: {label}", [None if own is None else cell(own) for own in found]))
    return rows


def _number(value: float, error: float | None = None) -> Cell:
    return Cell(f"{value:.4g}" + ("" if error is None else f" ± {error:.2g}"), value)


def _eigenvalue_cell(value: Mapping[str, Any]) -> Cell:
    return Cell(
        f"{value['value']:.4g} ± {value['residual']:.0e}" + ("" if value["converged"] else " !"), value["value"]
    )


_RELATIVE: Mapping[str, Callable[[Mapping[str, Any]], Cell]] = {
    "|W|² λmax*": lambda own: _number(own["by_eigenvalue"], own["weight_norm2"] * own["top"]["residual"]),
    "|W|² trace*": lambda own: _number(own["by_trace"], own["weight_norm2"] * own["trace"]["standard_error"]),
}
"""Relative flatness of a layer, two ways."""
