"""The statements on a network of any size, by products alone; every number comes with the interval it lies in.

Largest eigenvalues found by Lanczos are known from below by their Ritz value, and from above by what the search says
that it cannot have missed (`ends.py`); lambda_max(B_n) by Ritz value and residual, for every sample. A statement is
called violated only if it is so everywhere in these intervals. K and P, equalities of matrices, are checked on a random
vector v: sqrt(p) |D v| / |v| has |D|_F as its root mean square. Before all of them the products are held to differences
and to torch's own (`differences.py`).
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from analysis.activations import forward_pass
from analysis.distributed import least
from analysis.eigenvalue import listed
from analysis.errors import MeasurementError
from analysis.lanczos import lanczos
from analysis.layer_blocks import LayerBlocks
from analysis.losses import LOSSES, is_convex
from analysis.operators import SymmetricOperator, gauss_newton, hessian
from analysis.output_refusals import require_tensor
from analysis.problem import Problem
from analysis.recording import recording
from analysis.sample_axes import runs_of
from analysis.spectrum import layer_eigenpairs
from analysis.subsets import client_spectra
from analysis.suffix import Suffix
from analysis.theory.differences import derivative_checks
from analysis.theory.extent import DENSE, above, dense_spectrum, spectrum_ends
from analysis.theory.factors import layer_factors
from analysis.theory.networks import is_piecewise_linear, modules_after, squared_lipschitz
from analysis.theory.reference import Reference
from analysis.theory.samplewise import has_patches
from analysis.theory.statements import (
    LEAST_BLOCK,
    LEAST_CURVATURE,
    ROUNDING,
    Check,
    Interval,
    exactly,
    total,
)
from analysis.vectors import norm

TOL = 1e-3

Progress = Callable[[str], None]


@dataclass(frozen=True)
class LayerChain:
    """One layer's eigenvalue and the bounds above it.

    None for layers that are neither Linear nor plain Conv2d, for those that are used twice or share their weights, and
    for those whose input has not a row for every sample.
    """

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


@recording()
def chain(
    problem: Problem, clients: Mapping[str, Problem] | None = None, progress: Progress = lambda stage: None
) -> Chain:
    """Check every statement on `problem`, and F on `clients`, the same network on parts of the same samples.

    Raises `MeasurementError` unless the problem is a mean over samples in float64, where rounding is far below what
    is to be seen, of a model whose output is one tensor.
    """
    _require_mean(problem)
    require_tensor(problem)
    began = time.perf_counter()
    checks = list(derivative_checks(problem, hessian, gauss_newton, progress))
    progress("whole network")
    smallest, largest = spectrum_ends(hessian(problem))
    whole = _largest(problem, largest)
    scale = max(whole.high, -smallest.low, LEAST_CURVATURE * _stretch2(problem))
    progress("layers")
    tops = _layer_tops(problem, whole.high)
    layers = []
    for name, top in tops.items():
        progress(name)
        layer, own = _layer_chain(problem, name, top, LEAST_BLOCK * scale)
        layers.append(layer)
        checks += own
    progress("whole network")
    checks += _network_checks(problem, whole, smallest, tops, scale)
    if clients:
        checks.append(_clients_check(clients, scale, progress))
    loss = forward_pass(problem).loss
    return Chain(loss, problem.samples, whole, smallest, layers, checks, time.perf_counter() - began)


def _require_mean(problem: Problem) -> None:
    if problem.dtype != torch.float64:
        raise MeasurementError(
            f"The statements are checked in float64, not in {str(problem.dtype).removeprefix('torch.')}."
        )
    if problem.reduction != "mean":
        raise MeasurementError(f"The statements are checked on a mean over samples, not on a {problem.reduction}.")
    if problem.normaliser != problem.samples:  # they weigh every sample by 1/N
        raise MeasurementError(
            f"The statements are checked on a loss that is divided by the number of samples, {problem.samples}; "
            f"{problem.loss.name} is divided by {problem.normaliser:g} here (by elements, labels that count, or their "
            "weights): pass a function that returns (sum, number of samples)."
        )


def _largest(problem: Problem, largest: Interval) -> Interval:
    """lambda_max(H) to `TOL`, or exactly where `largest` says so."""
    if problem.size <= DENSE:
        return largest
    return _both(_searched(hessian(problem)), largest)


def _searched(operator: SymmetricOperator) -> Interval:
    return above(listed(lanczos(operator, tol=TOL))[0], TOL)


def _both(one: Interval, other: Interval) -> Interval:
    """Where a number lies that lies in both."""
    low = max(one.low, other.low)
    return Interval(low, max(low, min(one.high, other.high)))


def _layer_tops(problem: Problem, most: float) -> dict[str, Interval]:
    """lambda_max(H_ll) of every layer, exactly in a network of at most `DENSE` parameters; none is above `most`."""
    if problem.size > DENSE:
        found = {name: above(listed(pairs)[0], TOL) for name, pairs in layer_eigenpairs(problem, tol=TOL).items()}
        return {name: Interval(top.low, max(top.low, min(top.high, most))) for name, top in found.items()}
    blocks = LayerBlocks(problem)
    return {name: exactly(dense_spectrum(blocks.operator(name))[-1].item()) for name in blocks.layers}


def _stretch2(problem: Problem) -> float:
    """mean_n |J_n|_F^2, roughly; J is the Jacobian of the outputs in the problem's parameters."""
    return Reference(problem).stretch2(_random(problem.size, problem))


def _random(size: int, problem: Problem) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(size, dtype=torch.float64, generator=generator).to(problem.device)


def _suffixes(blocks: LayerBlocks, name: str) -> Iterator[Suffix] | None:
    """What follows the layer, chunk by chunk; None where nothing is after it alone."""
    try:
        return blocks.suffixes(name)
    except MeasurementError:
        return None


def _layer_chain(problem: Problem, name: str, top: Interval, floor: float) -> tuple[LayerChain, list[Check]]:
    """Rounding is judged as in a block of norm `floor` at least."""
    blocks = LayerBlocks(problem, [name])
    layer, size, suffixes = blocks.layers[name], blocks.size(name), _suffixes(blocks, name)
    by_sample = [run.by_sample for run in runs_of(problem, [layer])[name]] == [True]
    (everywhere,) = least([by_sample], problem.device, problem.distributed)
    if suffixes is None or not has_patches(layer) or not everywhere:
        return LayerChain(name, size, top, None, None, None, None, None), []
    own = problem.select(layer.parameters.values())
    scale = max(top.high, floor, LEAST_CURVATURE * _stretch2(own))
    v = _random(size, problem)
    factors = layer_factors(suffixes, layer, problem, v, TOL)
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


def _network_checks(
    problem: Problem, top: Interval, smallest: Interval, tops: Mapping[str, Interval], scale: float
) -> Iterator[Check]:
    layers = total(tops.values())
    yield Check("S1", "", top, layers, scale, claimed=smallest.low >= -ROUNDING * scale)
    if all(_locally_linear_after(problem, name) for name in tops):  # then G_ll = H_ll
        G = gauss_newton(problem)
        semidefinite = is_convex(problem.loss) or spectrum_ends(G)[0].low >= -ROUNDING * scale
        yield Check("S1 (G)", "", _searched(G), layers, scale, claimed=semidefinite)
    yield Check("S2", "", top, layers + smallest.times(1.0 - len(tops)), scale)


def _locally_linear_after(problem: Problem, name: str) -> bool:
    after = modules_after(problem.model, name)
    alone = _suffixes(LayerBlocks(problem, [name]), name) is not None
    return alone and after is not None and is_piecewise_linear(after)


def _clients_check(clients: Mapping[str, Problem], scale: float, progress: Progress) -> Check:
    spectra = client_spectra(clients, tol=TOL, progress=lambda name, *_: progress(f"client {name}"))
    right = total(above(tops[0], TOL).times(spectra.weights[name]) for name, tops in spectra.clients.items())
    return Check("F", "", above(spectra.whole[0], TOL), right, scale)


def _frobenius(difference: Tensor, v: Tensor) -> Interval:
    """|D|_F, estimated from D v."""
    return exactly(math.sqrt(len(v)) * norm(difference) / norm(v))
