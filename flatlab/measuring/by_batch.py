"""What `flatlab eigs --per-batch` computes: the top eigenvalues of every mini-batch's own loss.

Their distribution is known as the "Hessian max eigenvalue spectrum". Its mean is not the eigenvalue of the mean loss
but lies above it (`analysis.subsets` says why), so both are shown.
"""

from dataclasses import replace
from typing import Any

from analysis.subsets import batch_spectra
from flatlab.measuring.eigs import Search, plain_eigenvalue, top
from flatlab.measuring.subjects import Subject
from flatlab.tell import Tell, silent


def batches_numbers(subject: Subject, search: Search, batch_size: int, tell: Tell = silent) -> dict[str, Any]:
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
