"""What `flatlab trace --flatness` computes: raw and rescaling-invariant measures of the same point, side by side."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from analysis.eigenvalue import Eigenvalue
from analysis.flatness import FlatnessReport, flatness
from analysis.problem import Problem
from analysis.worst_case import Norm, WorstCase, worst_case_sharpness
from flatlab.errors import UsageError, require_count
from flatlab.measuring.eigs import plain_eigenvalue
from flatlab.measuring.result import Result
from flatlab.measuring.trace import Probing
from flatlab.tell import Tell, silent

if TYPE_CHECKING:
    from matplotlib.figure import Figure


RADII: Mapping[str, float] = {"linf": 0.001, "l2": 0.5}
"""Radii by norm, among those that Andriushchenko et al. (2023) measure ResNets and ViTs with."""


@dataclass(frozen=True)
class Ascent:
    """How the worst case is sought."""

    norm: Norm
    radius: float  # as a share of every parameter
    steps: int = 20
    batch_size: int = 128
    normalised_logits: bool = False

    @property
    def products(self) -> float:
        """About how many Hessian products take as long; a gradient is half of one."""
        return (self.steps + 1) / 2


def read_ascent(
    norm: str | None,
    radius: float | None = None,
    steps: int | None = None,
    batch_size: int | None = None,
    normalised_logits: bool = False,
) -> Ascent | None:
    """None where no norm is named; raises `UsageError` for one that is none, and for numbers that do not fit."""
    if norm is None:
        given = {"radius": radius, "ascent-steps": steps, "batch": batch_size, "normalise-logits": normalised_logits}
        for option, value in given.items():
            if value not in (None, False):
                raise UsageError(f"--{option} is of the worst case: name its norm, --worst-case linf or l2.")
        return None
    if norm not in RADII:
        raise UsageError(f"--worst-case is linf or l2, not {norm!r}.")
    radius = RADII[norm] if radius is None else radius
    if not 0 < radius < math.inf:
        raise UsageError(f"--radius is a share of every parameter, above 0, not {radius:g}.")
    steps = Ascent.steps if steps is None else steps
    batch_size = Ascent.batch_size if batch_size is None else batch_size
    require_count("ascent-steps", steps)
    require_count("batch", batch_size)
    return Ascent(norm, radius, steps, batch_size, normalised_logits)  # type: ignore[arg-type]


def flatness_settings(probing: Probing, ascent: Ascent | None) -> dict[str, Any]:
    """What is kept of how the measures were made."""
    if ascent is None:
        return {**vars(probing), "worst_case": None}
    how = vars(ascent)
    return {**vars(probing), "worst_case": ascent.norm, **{name: how[name] for name in how if name != "norm"}}


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class FlatnessResult(Result):
    """Raw and rescaling-invariant measures of the same point."""

    title: ClassVar[str] = "Flatness"

    report: FlatnessReport  # every measure with its error (analysis.flatness)
    worst_case: WorstCase | None  # adaptive sharpness by ascent, where that was asked for

    @property
    def finished(self) -> bool:
        """Of the eigenvalues and the trace."""
        return super().finished and (self.report.trace_converged or self.report.trace_rounded)

    def searched(self) -> list[Eigenvalue]:
        """Those of the network, and the top of each layer's weight."""
        return [*self.report.eigenvalues, *(layer.top for layer in self.report.layers)]

    def numbers(self) -> dict[str, Any]:
        """Every measure of `analysis.flatness`."""
        report, exact = self.report, {"confirmed": self.report.confirmed}
        return {
            "loss": report.loss,
            "eigenvalues": [plain_eigenvalue(value) for value in report.eigenvalues],
            "spread": report.spread if report.spread == report.spread else None,  # nan with fewer than five parameters
            "trace": {**vars(report.trace), "converged": report.trace_converged, "rounded": report.trace_rounded},
            "frobenius": vars(report.frobenius),
            "sam_sharpness": {"value": report.sam_sharpness, "radius": report.sam_radius, **exact},
            "adaptive_sharpness": {"value": report.adaptive_sharpness, "radius": report.adaptive_radius, **exact},
            **self._worst_case(),
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
        if worst := self.worst_case:
            rows.append((f"worst case in {worst.norm}, rho = {worst.radius:g}, >=", "network", worst.value, math.nan))
        for layer in report.layers:
            norm2 = layer.weight_norm2
            rows.append(("|W|^2 lambda_max", layer.name, layer.by_eigenvalue, norm2 * layer.top.residual))
            rows.append(("|W|^2 trace", layer.name, layer.by_trace, norm2 * layer.trace.standard_error))
        return [dict(zip(("measure", "layer", "value", "error"), row, strict=True)) for row in rows]

    def _worst_case(self) -> dict[str, Any]:
        worst = self.worst_case
        if worst is None:
            return {}
        return {"worst_case_sharpness": {**vars(worst), "values": worst.values.tolist(), "bound": "lower"}}

    def plot(self) -> "Figure":
        """The relative flatness of every layer, two ways."""
        from figures.relative_flatness import draw_relative_flatness

        return draw_relative_flatness([self.to_dict()]).figure


def measure_flatness(
    problem: Problem, probing: Probing, tell: Tell = silent, ascent: Ascent | None = None
) -> FlatnessResult:
    """Every measure of `analysis.flatness`, and the worst case where an ascent to it is described."""

    def show(stage: str, products: int, error: float) -> None:
        tell(f"{stage or 'whole network'}: {products} products, relative error {error:.1e}")

    worst = None if ascent is None else _worst_case(problem, ascent, tell)
    report = flatness(problem, trace_tol=probing.tol, max_probes=probing.max_probes, progress=show)
    return FlatnessResult(report=report, worst_case=worst)


def _worst_case(problem: Problem, ascent: Ascent, tell: Tell) -> WorstCase:
    return worst_case_sharpness(
        problem,
        ascent.norm,
        ascent.radius,
        steps=ascent.steps,
        batch_size=ascent.batch_size,
        normalised_logits=ascent.normalised_logits,
        progress=lambda done, total: tell(f"worst case: {done} of {total} batches"),
    )
