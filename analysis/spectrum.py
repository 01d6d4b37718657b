"""The leading eigenvalues of the whole Hessian and of every layer's block, with their error bounds, in one call."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from analysis.activations import forward_pass
from analysis.eigenpairs import Eigenpairs, Iteration, Progress, drive
from analysis.lanczos import lanczos_steps
from analysis.layers import LayerBlocks
from analysis.operators import hessian
from analysis.power import power_steps
from analysis.problem import Problem
from analysis.pyhessian_backend import pyhessian_operator

Method = Literal["lanczos", "power"]
Backend = Literal["flatlab", "pyhessian"]


@dataclass(frozen=True)
class Eigenvalue:
    """One eigenvalue and how exact it is."""

    value: float
    residual: float  # |H v - value v|, from a fresh product: an eigenvalue lies within this distance of value
    relative_residual: float  # residual / |value|
    error: float  # the sharper bound residual^2 / gap where the gap is known, else the residual
    converged: bool  # relative_residual at most the tolerance asked for


@dataclass(frozen=True)
class LayerSpectrum:
    """The top of one layer's block (weight and bias together)."""

    name: str
    parameters: int
    eigenvalues: tuple[Eigenvalue, ...]
    input_norm2: float  # mean over samples of |a|^2 entering; nan where the layer does not run as a module
    output_norm2: float  # the same after the nonlinearity that follows, before pooling
    products: int


@dataclass(frozen=True)
class EigsReport:
    """What `eigs` found; eigenvalues are in the order of the method (largest first, or largest magnitude first)."""

    eigenvalues: tuple[Eigenvalue, ...]  # of the whole Hessian
    vectors: Tensor  # (p, k) of the whole Hessian
    layers: tuple[LayerSpectrum, ...]
    samples: int
    loss: float  # L
    method: Method
    backend: Backend
    products: int  # Hessian-vector products, those with layer blocks included
    seconds: float

    @property
    def converged(self) -> bool:
        """Whether every eigenvalue met the tolerance."""
        everything = [*self.eigenvalues, *(value for layer in self.layers for value in layer.eigenvalues)]
        return all(value.converged for value in everything)


ReportProgress = Callable[[str, int, float], None]
"""Called with "" (the whole Hessian) or a layer's name, its products so far and its worst relative residual."""


def eigs(
    problem: Problem,
    k: int = 1,
    *,
    tol: float = 1e-3,
    max_iter: int = 200,
    method: Method = "lanczos",
    layers: Sequence[str] | None = None,
    backend: Backend = "flatlab",
    start: Tensor | None = None,
    seed: int = 0,
    progress: ReportProgress | None = None,
) -> EigsReport:
    """The top k eigenvalues of the Hessian of L and of each layer's block, each with its residual.

    "lanczos" finds the largest, "power" the largest in magnitude; both stop where |H v - lambda v| <= tol |lambda|, or
    after max_iter * k products, and never raise for want of convergence. `layers` names the layers (None: all, empty:
    none); `start` (p, m) is a warm start for the whole Hessian. `backend="pyhessian"` takes every product from
    PyHessian.
    """
    began = time.perf_counter()
    like = problem.point().new_empty(0)

    def steps(size: int, name: str, start: Tensor | None = None) -> Iteration:
        told: Progress | None = None
        if progress:
            told = lambda products, residual: progress(name, products, residual)  # noqa: E731
        if method == "power":
            return power_steps(size, like, k, tol, max_iter, start, seed, told)
        return lanczos_steps(size, like, k, "largest", tol, max_iter, start, seed, progress=told)

    operator = pyhessian_operator(problem) if backend == "pyhessian" else hessian(problem)
    whole = drive(steps(problem.size, "", start), operator.rows)
    del operator  # and its graphs, before those of the layers
    blocks = LayerBlocks(problem, layers)
    iterations = {name: steps(blocks.size(name), name) for name in blocks.layers}
    if backend == "pyhessian":
        found = {}
        for name, layer in blocks.layers.items():
            found[name] = drive(iterations[name], pyhessian_operator(problem.select(layer.parameters.values())).rows)
    else:
        found = drive_together(iterations, blocks)
    forward = forward_pass(problem, list(blocks.layers))
    return EigsReport(
        eigenvalues=_listed(whole),
        vectors=whole.vectors,
        layers=tuple(
            LayerSpectrum(
                name=name,
                parameters=blocks.size(name),
                eigenvalues=_listed(pairs),
                input_norm2=forward.layers[name].input_norm2,
                output_norm2=forward.layers[name].output_norm2,
                products=pairs.products,
            )
            for name, pairs in found.items()
        ),
        samples=problem.samples,
        loss=forward.loss,
        method=method,
        backend=backend,
        products=whole.products + sum(pairs.products for pairs in found.values()),
        seconds=time.perf_counter() - began,
    )


def drive_together(
    iterations: Mapping[str, Iteration], products: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]
) -> dict[str, Eigenpairs]:
    """Run several iterations in step, so that one pass over the data serves all that still go on."""
    asked = {name: next(iteration) for name, iteration in iterations.items()}
    found: dict[str, Eigenpairs] = {}
    while asked:
        images = products(asked)
        asked = {}
        for name, image in images.items():
            try:
                asked[name] = iterations[name].send(image)
            except StopIteration as stop:
                found[name] = stop.value
    return {name: found[name] for name in iterations}


def _listed(pairs: Eigenpairs) -> tuple[Eigenvalue, ...]:
    columns = (pairs.values, pairs.residuals, pairs.relative_residuals, pairs.quadratic, pairs.converged)
    return tuple(Eigenvalue(*row) for row in zip(*(column.tolist() for column in columns), strict=True))
