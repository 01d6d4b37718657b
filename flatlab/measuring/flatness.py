"""What `flatlab trace --flatness` computes: raw and rescaling-invariant measures of the same point, side by side."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from analysis.flatness import FlatnessReport, flatness
from analysis.problem import Problem
from flatlab.measuring.eigs import plain_eigenvalue
from flatlab.measuring.result import Result
from flatlab.measuring.trace import Probing
from flatlab.tell import Tell, silent

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class FlatnessResult(Result):
    """Raw and rescaling-invariant measures of the same point."""

    title: ClassVar[str] = "Flatness"

    report: FlatnessReport  # every measure with its error (analysis.flatness)

    def numbers(self) -> dict[str, Any]:
        """Every measure of `analysis.flatness`."""
        report = self.report
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

    def rows(self) -> list[dict[str, Any]]:
        """One row per measure; the error is a residual of eigenvalues, and a standard error of traces."""
        report = self.report
        rows: list[tuple[str, str, float, float]] = [
            ("lambda_1", "network", report.eigenvalues[0].value, report.eigenvalues[0].residual),
            ("lambda_1 / lambda_5", "network", report.spread, math.nan),
            ("trace", "network", report.trace.value, report.trace.standard_error),
            ("|H|_F", "network", report.frobenius.value, report.frobenius.standard_error),
            (f"SAM sharpness, rho = {report.sam_radius:g}", "network", report.sam_sharpness, math.nan),
            (f"adaptive sharpness, rho = {report.adaptive_radius:g}", "network", report.adaptive_sharpness, math.nan),
        ]
        for layer in report.layers:
            norm2 = layer.weight_norm2
            rows.append(("|W|^2 lambda_max", layer.name, layer.by_eigenvalue, norm2 * layer.top.residual))
            rows.append(("|W|^2 trace", layer.name, layer.by_trace, norm2 * layer.trace.standard_error))
        return [dict(zip(("measure", "layer", "value", "error"), row, strict=True)) for row in rows]

    def plot(self) -> "Figure":
        """The relative flatness of every layer, two ways."""
        from figures.relative_flatness import draw_relative_flatness

        return draw_relative_flatness([self.to_dict()]).figure


def measure_flatness(problem: Problem, probing: Probing, tell: Tell = silent) -> FlatnessResult:
    """Every measure of `analysis.flatness`."""

    def show(stage: str, products: int, error: float) -> None:
        tell(f"{stage or 'whole network'}: {products} products, relative error {error:.1e}")

    report = flatness(problem, trace_tol=probing.tol, max_probes=probing.max_probes, progress=show)
    return FlatnessResult(report=report)
