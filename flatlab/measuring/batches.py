"""What `flatlab eigs --per-batch` does: the top eigenvalues of every mini-batch's own loss.

Their distribution is known as the "Hessian max eigenvalue spectrum". Its mean is not the eigenvalue of the mean loss
but lies above it (`analysis.subsets` says why), so both are shown.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from analysis.subsets import batch_spectra
from flatlab.measuring.eigs import Search, plain_eigenvalue, top
from flatlab.measuring.eigs_table import lambda_, print_certificate, warn_unless_converged
from flatlab.measuring.pictures import save_picture
from flatlab.measuring.running import Tell, measure
from flatlab.measuring.subjects import Measurement, Subject
from flatlab.measuring.tables import Cell, Row, loss_name, print_side_by_side

QUANTILES = {"lowest": 0.0, "quarter below": 0.25, "median": 0.5, "quarter above": 0.75, "highest": 1.0}


def batches_run(
    paths: Sequence[Path],
    measurement: Measurement,
    search: Search,
    batch_size: int,
    figure: Path | None,
    json: Path | None,
) -> None:
    """Measure every mini-batch's loss, print the distribution, write and draw the numbers."""

    def work(subject: Subject, tell: Tell) -> dict[str, Any]:
        return batches_numbers(subject, search, batch_size, tell)

    results = measure("batches", paths, measurement, work, json)
    title = f"Hessians of mini-batches of {batch_size}: {loss_name(results[0])}"
    print_side_by_side(title, "", "eigenvalue", _rows(results), results)
    whole = [value for result in results for value in result["global"]["eigenvalues"]]
    print_certificate(whole)
    warn_unless_converged(whole + [{"converged": result["converged"]} for result in results])
    if figure is not None:
        from figures.batch_spectrum import draw_batch_spectrum

        save_picture(draw_batch_spectrum, results, figure)


def batches_numbers(subject: Subject, search: Search, batch_size: int, tell: Tell) -> dict[str, Any]:
    """The top eigenvalues of the mean loss, and those of every batch."""
    report = top(subject.problem, replace(search, layers="none"), tell)
    spectra = batch_spectra(
        subject.problem,
        batch_size,
        search.k,
        tol=search.tol,
        max_iter=search.max_iter,
        start=report.vectors,
        progress=lambda done, total: tell(f"{done} of {total} batches"),
    )
    return {
        "loss": report.loss,
        "global": {"eigenvalues": [plain_eigenvalue(value) for value in report.eigenvalues]},
        "batch_size": spectra.batch_size,
        "values": spectra.values.tolist(),
        "residuals": spectra.residuals.tolist(),
        "converged": bool(spectra.converged.all()),
        "hvps": report.products + spectra.products,
    }


def _rows(results: Sequence[dict[str, Any]]) -> list[Row]:
    rows: list[Row] = []
    for index in range(len(results[0]["global"]["eigenvalues"])):
        values = [np.array(result["values"])[:, index] for result in results]
        wholes = [result["global"]["eigenvalues"][index] for result in results]
        name = lambda_(index + 1)
        rows.append(
            (
                f"{name} of the mean loss",
                [Cell(f"{whole['value']:.4g} ± {whole['residual']:.0e}", whole["value"]) for whole in wholes],
            )
        )
        rows.append((f"{name} of a batch: mean", [_number(float(own.mean())) for own in values]))
        for quantile, share in QUANTILES.items():
            rows.append((f"  {quantile}", [_number(float(np.quantile(own, share))) for own in values]))
    rows.append(("batches", [Cell(str(len(result["values"]))) for result in results]))
    return rows


def _number(value: float) -> Cell:
    return Cell(f"{value:.4g}", value)
