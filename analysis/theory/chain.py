"""The statements on a network of any size, by products alone; every number comes with the interval it lies in.

Left sides, largest eigenvalues found by Lanczos, are known from below by their Ritz value and from above by its
residual; lambda_max(B_n) likewise, for every sample. A statement is called violated only if it is so everywhere in
these intervals. K and P, equalities of matrices, are checked on a random vector v: sqrt(p) |D v| / |v| has |D|_F as its
root mean square.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from analysis.activations import forward_pass
from analysis.eigenpairs import Eigenpairs
from analysis.errors import MeasurementError
from analysis.lanczos import lanczos
from analysis.layers import Layer, LayerBlocks, Suffix
from analysis.losses import LOSSES
from analysis.operators import gauss_newton, hessian
from analysis.problem import Problem
from analysis.spectrum import layer_eigenpairs
from analysis.subsets import client_spectra
from analysis.theory.networks import is_piecewise_linear, modules_after, squared_lipschitz
from analysis.theory.samplewise import (
    as_outputs,
    at_positions,
    has_patches,
    patches,
    squared_norms,
    top_curvatures,
)
from analysis.theory.statements import LEAST_BLOCK, ROUNDING, Check, Interval, exactly, total
from analysis.vectors import norm

TOL = 1e-3
_SMALLEST_TOL, _SMALLEST_PRODUCTS = 5e-2, 60

Progress = Callable[[str], None]


@dataclass(frozen=True)
class LayerChain:
    """One layer's eigenvalue and the bounds above it; None for layers that are neither Linear nor plain Conv2d."""

    name: str
    parameters: int
    top: Interval  # lambda_max(H_ll)
    norm2: float | None  # mean |U~_n|_F^2, which is mean |a~_n|^2 in a fully connected layer
    curvature: Interval | None  # max_n lambda_max(B_n)
    a1: Interval | None
    a2: Interval | None
    a3: Interval | None  # also None where A3 is not claimed


@dataclass(frozen=True)
class Chain:
    """All statements on one network."""

    loss: float
    samples: int
    top: Interval  # lambda_max(H)
    smallest: Interval  # lambda_min(H)
    layers: Sequence[LayerChain]
    checks: Sequence[Check]
    seconds: float


def chain(
    problem: Problem, clients: Mapping[str, Problem] | None = None, progress: Progress = lambda stage: None
) -> Chain:
    """Check every statement on `problem`, and F on `clients`, the same network on parts of the same samples.

    Raises `MeasurementError` unless the problem is a mean in float64, where rounding is far below what is to be seen.
    """
    counts_each = problem.reduction == "mean" and problem.normaliser == problem.samples
    if problem.dtype != torch.float64 or not counts_each:
        raise MeasurementError("The statements are checked on a mean over samples in float64.")
    began = time.perf_counter()
    progress("whole network")
    whole = _above(lanczos(hessian(problem), tol=TOL))
    smallest = _below(lanczos(hessian(problem), which="smallest", tol=_SMALLEST_TOL, max_iter=_SMALLEST_PRODUCTS))
    scale = max(whole.high, -smallest.low)
    progress("layers")
    tops = {name: _above(pairs) for name, pairs in layer_eigenpairs(problem, tol=TOL).items()}
    layers, checks = [], []
    for name, top in tops.items():
        progress(name)
        layer, own = _layer_chain(problem, name, top, max(top.high, LEAST_BLOCK * scale))
        layers.append(layer)
        checks += own
    progress("whole network")
    checks += _network_checks(problem, whole, smallest, tops, scale)
    if clients:
        checks.append(_clients_check(clients, progress))
    loss = forward_pass(problem).loss
    return Chain(loss, problem.samples, whole, smallest, layers, checks, time.perf_counter() - began)


def _layer_chain(problem: Problem, name: str, top: Interval, scale: float) -> tuple[LayerChain, list[Check]]:
    blocks = LayerBlocks(problem, [name])
    layer, size = blocks.layers[name], blocks.size(name)
    if not has_patches(layer):
        return LayerChain(name, size, top, None, None, None, None, None), []
    v = torch.randn(size, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).to(problem.device)
    factors = _factors(blocks, layer, problem, v)
    own = problem.select(layer.parameters.values())
    H_v = hessian(own)(v)
    checks = [
        Check("K", name, _frobenius(H_v - factors.product, v), exactly(0.0), scale),
        Check("A1", name, top, factors.a1, scale),
        Check("A2", name, top, factors.a2, scale),
    ]
    after = modules_after(problem.model, name)
    a3 = None
    if after is not None and is_piecewise_linear(after) and problem.loss is LOSSES["cross_entropy"]:
        difference = _frobenius(H_v - gauss_newton(own)(v), v)
        checks.append(Check("P", name, exactly(0.0), difference.times(-1.0), scale))
        lipschitz2 = squared_lipschitz(after, factors.outputs)
        if lipschitz2 is not None:
            a3 = lipschitz2.times(factors.norm2 / 2)
            checks.append(Check("A3", name, top, a3, scale))
    return LayerChain(name, size, top, factors.norm2, factors.curvature, factors.a1, factors.a2, a3), checks


@dataclass(frozen=True)
class _Factors:
    """What the samples' patches and curvatures add up to."""

    norm2: float  # mean |U~|_F^2
    curvature: Interval  # max_n lambda_max(B_n)
    a1: Interval
    product: Tensor  # the right side of K times v
    outputs: Tensor  # s of one sample

    @property
    def a2(self) -> Interval:
        return self.curvature.times(self.norm2)


def _factors(blocks: LayerBlocks, layer: Layer, problem: Problem, v: Tensor) -> _Factors:
    """Go through the samples once. The suffix's curvature carries the 1/N of the mean."""
    module, N = layer.module, problem.samples
    norm2, a1, curvature, product = 0.0, exactly(0.0), Interval(0.0, 0.0), torch.zeros_like(v)
    direction = _as_matrix(v, layer)
    for suffix in blocks.suffixes(layer.name):
        rows = patches(layer, suffix.inputs)
        spectral, frobenius = squared_norms(rows)
        curved = suffix.curve(as_outputs(module, rows @ direction.T, suffix.outputs))
        product += _as_vector((at_positions(module, curved).mT @ rows).sum(0), layer)
        found = top_curvatures(partial(_curve, suffix, N), suffix.outputs.detach(), spectral, TOL)
        upper = found.values + found.errors
        norm2 += frobenius.sum().item() / N
        a1 += Interval((spectral @ found.values).item() / N, (spectral @ upper).item() / N)
        curvature = Interval(max(curvature.low, found.values.max().item()), max(curvature.high, upper.max().item()))
        outputs = suffix.outputs.detach()[:1]
    return _Factors(norm2, curvature, a1, product, outputs)


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


def _network_checks(
    problem: Problem, top: Interval, smallest: Interval, tops: Mapping[str, Interval], scale: float
) -> Iterator[Check]:
    layers = total(tops.values())
    yield Check("S1", "", top, layers, scale, claimed=smallest.low >= -ROUNDING * scale)
    if all(_locally_linear_after(problem, name) for name in tops):  # then G_ll = H_ll
        G = _above(lanczos(gauss_newton(problem), tol=TOL))
        yield Check("S1 (G)", "", G, layers, scale)
    yield Check("S2", "", top, layers + smallest.times(1.0 - len(tops)), scale)


def _locally_linear_after(problem: Problem, name: str) -> bool:
    after = modules_after(problem.model, name)
    return after is not None and is_piecewise_linear(after)


def _clients_check(clients: Mapping[str, Problem], progress: Progress) -> Check:
    spectra = client_spectra(clients, tol=TOL, progress=lambda name, *_: progress(f"client {name}"))
    whole = spectra.whole[0]
    left = Interval(whole.value, whole.value + whole.residual)
    return Check("F", "", left, Interval(spectra.mean, spectra.mean + spectra.mean_error), left.high)


def _frobenius(difference: Tensor, v: Tensor) -> Interval:
    """|D|_F, estimated from D v."""
    return exactly(math.sqrt(len(v)) * norm(difference) / norm(v))


def _above(pairs: Eigenpairs) -> Interval:
    """Where a largest eigenvalue lies."""
    return Interval(pairs.values[0].item(), (pairs.values[0] + pairs.residuals[0]).item())


def _below(pairs: Eigenpairs) -> Interval:
    """Where a smallest eigenvalue lies."""
    return Interval((pairs.values[0] - pairs.residuals[0]).item(), pairs.values[0].item())
