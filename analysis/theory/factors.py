"""The right sides of K, A1 and A2 in one layer, gathered sample by sample."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from analysis.distributed import greatest, summed
from analysis.layers import Layer
from analysis.problem import Problem
from analysis.suffix import Suffix
from analysis.theory.extent import CHANCE
from analysis.theory.samplewise import as_outputs, at_positions, patches, squared_norms, top_curvatures
from analysis.theory.statements import Interval, exactly


@dataclass(frozen=True)
class Factors:
    """What the samples' patches and curvatures add up to in one layer."""

    norm2: float  # mean |U~|_F^2
    curvature: Interval  # max_n lambda_max(B_n)
    a1: Interval
    product: Tensor  # the right side of K times v
    outputs: Tensor  # s of one sample

    @property
    def a2(self) -> Interval:
        """The right side of A2."""
        return self.curvature.times(self.norm2)


def layer_factors(suffixes: Iterable[Suffix], layer: Layer, problem: Problem, v: Tensor, tol: float) -> Factors:
    """Go through the samples of all ranks once, `suffixes` being the layer's; lambda_max(B_n) is found to `tol`.

    The suffix's curvature carries the 1/N of the mean. `v` (p_l,) is multiplied.
    """
    module, N = layer.module, problem.samples
    norm2, a1, curvature, product = 0.0, exactly(0.0), Interval(0.0, 0.0), torch.zeros_like(v)
    direction = _as_matrix(v, layer)
    with problem.passing():
        for suffix in suffixes:
            rows = patches(layer, suffix.inputs)
            spectral, frobenius = squared_norms(rows)
            curved = suffix.curve(as_outputs(module, rows @ direction.T, suffix.outputs))
            product += _as_vector((at_positions(module, curved).mT @ rows).sum(0), layer)
            found = top_curvatures(partial(_curve, suffix, N), suffix.outputs.detach(), spectral, tol, CHANCE / N)
            norm2 += frobenius.sum().item() / N
            a1 += Interval((spectral @ found.values).item() / N, (spectral @ found.uppers).item() / N)
            curvature = Interval(
                max(curvature.low, found.values.max().item()), max(curvature.high, found.uppers.max().item())
            )
            outputs = suffix.outputs.detach()[:1]
    sums = torch.tensor([norm2, a1.low, a1.high], dtype=torch.float64, device=problem.device)
    norm2, low, high = summed(sums, problem.distributed).tolist()
    largest = greatest([curvature.low, curvature.high], problem.device, problem.distributed)
    return Factors(norm2, Interval(*largest), Interval(low, high), summed(product, problem.distributed), outputs)


def _curve(suffix: Suffix, samples: int, u: Tensor) -> Tensor:
    """B_n u_n of every sample."""
    return samples * suffix.curve(u)


def _as_matrix(v: Tensor, layer: Layer) -> Tensor:
    """The layer's weight and bias in `v` (p,) as [W b], (d_out, D)."""
    d_out = len(layer.module.weight)  # type: ignore[arg-type]
    weights = v if "bias" not in layer.parameters else v[:-d_out]
    return torch.cat([weights.reshape(d_out, -1), v[len(weights) :].reshape(d_out, -1)], dim=1)


def _as_vector(matrix: Tensor, layer: Layer) -> Tensor:
    """The inverse of `_as_matrix`."""
    d_in = matrix.shape[1] - ("bias" in layer.parameters)
    return torch.cat([matrix[:, :d_in].reshape(-1), matrix[:, d_in:].reshape(-1)])
