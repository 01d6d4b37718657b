"""Matrices of the form sum_n J_n^T C_n J_n, J_n = dz_n/dtheta: what stands in the middle.

    Gauss-Newton        C_n = w d^2 loss_n / dz^2
    Fisher              C_n = w E_y [s s^T],  s = d log p(y | z) / dz,   y drawn from the model's own p(. | z_n)
    empirical Fisher    C_n = w (d loss_n / dz) (d loss_n / dz)^T,   so that J_n^T C_n J_n = w g_n g_n^T

with w = 1/M, as in L = 1/M sum_n loss_n, and g_n the gradient of loss_n in theta. (Schraudolph 2002; Martens 2020;
Kunstner, Hennig and Balles 2019, who say why the third is not the second.)
"""

from collections.abc import Callable

from torch import Tensor

from analysis.derivatives import gradients
from analysis.parametric_loss import Chunk
from analysis.predictive import predictive
from analysis.problem import Problem

Middle = Callable[[Chunk, Tensor, Tensor], Callable[[Tensor], Tensor]]
"""(chunk, outputs z as a leaf, w dS/dz with its graph) -> the product with all C_n at once."""


def of_the_loss(chunk: Chunk, outputs: Tensor, slope: Tensor) -> Callable[[Tensor], Tensor]:
    """The loss's second derivative in the outputs."""
    return lambda u: gradients([slope], [outputs], [u])[0]


def of_the_prediction(problem: Problem) -> Middle:
    """The Fisher information of the predictive distribution; raises `MeasurementError` where there is none."""
    distribution = predictive(problem.loss)

    def middle(chunk: Chunk, outputs: Tensor, slope: Tensor) -> Callable[[Tensor], Tensor]:
        information = distribution(outputs, chunk.targets)
        return lambda u: chunk.weight * information(u)

    return middle


def of_the_slopes(chunk: Chunk, outputs: Tensor, slope: Tensor) -> Callable[[Tensor], Tensor]:
    """Every sample's outer product of its slope; the outputs have a row for each sample."""
    rows = slope.detach().flatten(1) if slope.dim() > 1 else slope.detach()[:, None]

    def product(u: Tensor) -> Tensor:
        along = (rows * u.reshape(rows.shape)).sum(1, keepdim=True)
        return (along / chunk.weight * rows).reshape(u.shape)

    return product
