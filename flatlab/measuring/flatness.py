"""What `flatlab trace --flatness` computes: raw and rescaling-invariant measures of the same point, side by side."""

from typing import Any

from analysis.flatness import flatness
from analysis.problem import Problem
from flatlab.measuring.eigs import plain_eigenvalue
from flatlab.measuring.trace import Probing
from flatlab.tell import Tell, silent


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
