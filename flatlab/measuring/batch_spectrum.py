"""What `flatlab eigs --per-batch` computes: the top eigenvalues of every mini-batch's own loss.

Their distribution is known as the "Hessian max eigenvalue spectrum". Its mean is not the eigenvalue of the mean loss
but lies above it (`analysis.subsets` says why), so both are shown.
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from analysis.eigenvalue import Eigenvalue
from analysis.subsets import BatchSpectra, batch_spectra
from flatlab.measuring.eigs import Search, plain_eigenvalue, top
from flatlab.measuring.result import Result
from flatlab.measuring.subjects import Subject
from flatlab.tell import Tell, silent

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class BatchesResult(Result):
    """The top eigenvalues of every mini-batch's own loss, and those of the mean loss."""

    title: ClassVar[str] = "Top Hessian eigenvalues of mini-batches"

    loss: float  # L
    eigenvalues: tuple[Eigenvalue, ...]  # (k,) of the mean loss
    batches: BatchSpectra  # values and residuals (batches, k)
    products: int

    @property
    def finished(self) -> bool:
        """Of the mean loss and of every batch."""
        return super().finished and bool(self.batches.converged.all())

    def searched(self) -> tuple[Eigenvalue, ...]:
        """Those of the mean loss."""
        return self.eigenvalues

    def numbers(self) -> dict[str, Any]:
        """The eigenvalues of the mean loss, and those of every batch."""
        return {
            "loss": self.loss,
            "global": {"eigenvalues": [plain_eigenvalue(value) for value in self.eigenvalues]},
            "batch_size": self.batches.batch_size,
            "values": self.batches.values.tolist(),
            "residuals": self.batches.residuals.tolist(),
            "converged": bool(self.batches.converged.all()),
            "each_converged": self.batches.converged.tolist(),
            "missed": self.batches.missed,
            "hvps": self.products,
        }

    def rows(self) -> list[dict[str, Any]]:
        """One row per batch and eigenvalue."""
        names = ("eigenvalue", "residual", "converged")
        columns = (self.batches.values.tolist(), self.batches.residuals.tolist(), self.batches.converged.tolist())
        return [
            {"batch": batch, "index": index, **dict(zip(names, numbers, strict=True))}
            for batch, pairs in enumerate(map(zip, *columns))
            for index, numbers in enumerate(pairs, start=1)
        ]

    def summary(self) -> list[dict[str, Any]]:
        """Mean and extremes over the batches, beside the mean loss."""
        values = self.batches.values
        columns = zip(
            self.eigenvalues,
            values.mean(0).tolist(),
            values.amin(0).tolist(),
            values.amax(0).tolist(),
            strict=True,
        )
        return [
            {"index": index, "of the mean loss": whole.value, "mean of batches": mean, "lowest": low, "highest": high}
            for index, (whole, mean, low, high) in enumerate(columns, start=1)
        ]

    def plot(self) -> "Figure":
        """The histogram of the batches' eigenvalues."""
        from figures.batch_spectrum import draw_batch_spectrum

        return draw_batch_spectrum([self.to_dict()]).figure


def measure_batches(subject: Subject, search: Search, batch_size: int, tell: Tell = silent) -> BatchesResult:
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
    return BatchesResult(
        loss=report.loss,
        eigenvalues=report.eigenvalues,
        batches=spectra,
        products=report.products + spectra.products,
    )
